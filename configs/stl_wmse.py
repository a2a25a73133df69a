"""W-MSE on STL-10 with a ResNet-18, 2 or 4 views, alone or with a mixture.

    python -m mixjax.main --config=configs/stl_wmse.py --workdir=...
    variants: :views=4, :mixture=unmix (or another, docs/mixtures.md), :branches=both,
    :epochs=

Un-Mix, table 3, linear, 2000 epochs: W-MSE 2 90.36, with Un-Mix 92.21; 5-nn 87.10 and
88.88; W-MSE 4 91.75, with Un-Mix 91.96; 5-nn 88.59 and 88.71. HTDT's recipe. One GPU,
about a day. Departure: the mean over pairs is over the pairs there are, where HTDT
divides by the number of its config.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.wmse, "stl", arg, epochs=2000, views=2)
