"""W-MSE on Tiny-ImageNet with a ResNet-18, 2 or 4 views, alone or with a mixture.

    python -m mixjax.main --config=configs/tiny_wmse.py --workdir=...
    variants: :views=4, :mixture=unmix (or another, docs/mixtures.md), :branches=both,
    :epochs=

Un-Mix, table 3, linear, 1000 epochs: W-MSE 2 48.20, with Un-Mix 51.33; 5-nn 34.16 and
36.78; W-MSE 4 49.22, with Un-Mix 50.67; 5-nn 35.44 and 36.13. HTDT's recipe. One GPU,
about a day. Departure: the mean over pairs is over the pairs there are, where HTDT
divides by the number of its config.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.wmse, "tiny", arg, epochs=1000, views=2)
