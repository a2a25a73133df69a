"""W-MSE on CIFAR-100 with a ResNet-18, 2 or 4 views, alone or with a mixture.

    python -m mixjax.main --config=configs/c100_wmse.py --workdir=...
    variants: :views=4, :mixture=unmix (or another, docs/mixtures.md), :branches=both,
    :epochs=

Un-Mix, table 3, linear, 1000 epochs: W-MSE 2 66.10, with Un-Mix 70.12; 5-nn 56.69 and
61.28; W-MSE 4 67.64, with Un-Mix 69.70; 5-nn 56.45 and 60.74. HTDT's recipe. One GPU,
some hours. Departure: the mean over pairs is over the pairs there are, where HTDT
divides by the number of its config.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.wmse, "c100", arg, epochs=1000, views=2)
