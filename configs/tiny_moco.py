"""MoCo on Tiny-ImageNet with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/tiny_moco.py --workdir=...
    variants: :symmetric=0, :mixture=unmix (or another, docs/mixtures.md),
    :branches=both, :epochs=

MixMask, table 5, symmetric, kNN (k = 200), 1000 epochs: 42.76, Un-Mix 45.32, MixMask
47.44, both 47.90. The stem is not stated there; this is HTDT's, with its max-pool. One
GPU, about a day.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.moco_cifar, "tiny", arg, epochs=1000, symmetric=True)
