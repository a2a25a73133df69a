"""SimCLR on STL-10 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/stl_simclr.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix, table 3, linear, 2000 epochs: 90.51, with Un-Mix 90.86; 5-nn 85.68 and 86.16.
HTDT's recipe. One GPU, about a day.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.simclr, "stl", arg, epochs=2000)
