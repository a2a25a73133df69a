"""BYOL on CIFAR-100 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/c100_byol.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix, table 3, linear, 1000 epochs: 66.60, with Un-Mix 71.50; 5-nn 56.82 and 63.83.
MixMask's table 5, linear: 66.8, Un-Mix 70.02, MixMask 71.88, both 72.14. HTDT's recipe.
One GPU, some hours.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.byol, "c100", arg, epochs=1000)
