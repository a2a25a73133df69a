"""BYOL on Tiny-ImageNet with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/tiny_byol.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix, table 3, linear, 1000 epochs: 51.00, with Un-Mix 53.39; 5-nn 36.24 and 39.27.
MixMask's table 5, linear: 51.4, Un-Mix 52.92, MixMask 50.78 (suspect: below none), both
53.72. HTDT's recipe. One GPU, about a day.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.byol, "tiny", arg, epochs=1000)
