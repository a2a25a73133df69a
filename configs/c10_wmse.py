"""W-MSE on CIFAR-10 with a ResNet-18, 2 or 4 views, alone or with a mixture.

    python -m mixjax.main --config=configs/c10_wmse.py --workdir=...
    variants: :views=4, :mixture=unmix (or another, docs/mixtures.md), :branches=both,
    :epochs=

Un-Mix, table 3, linear, 1000 epochs: W-MSE 2 91.55, with Un-Mix 93.04; 5-nn 89.69 and
91.33; W-MSE 4 91.99, with Un-Mix 93.18; 5-nn 89.87 and 91.70. HTDT's recipe. One GPU,
some hours. Departure: the mean over pairs is over the pairs there are, where HTDT
divides by the number of its config.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.wmse, "c10", arg, epochs=1000, views=2)
