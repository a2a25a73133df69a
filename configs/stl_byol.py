"""BYOL on STL-10 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/stl_byol.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix, table 3, linear, 2000 epochs: 91.99, with Un-Mix 93.34; 5-nn 88.64 and 90.46.
HTDT's recipe. One GPU, about a day.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.byol, "stl", arg, epochs=2000)
