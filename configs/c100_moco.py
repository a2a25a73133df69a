"""MoCo on CIFAR-100 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/c100_moco.py --workdir=...
    variants: :symmetric=1, :mixture=unmix (or another, docs/mixtures.md),
    :branches=both, :epochs=

Un-Mix's README, kNN (k = 200, T = 0.1), 1000 epochs: asymmetric 63.64, with Un-Mix
67.33; symmetric 65.49 and 68.83. MixMask, table 5, symmetric: 65.67, Un-Mix 68.62,
MixMask 68.36, both 69.95. Pictures keep CIFAR-10's statistics, as there. One GPU, some
hours.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.moco_cifar, "c100", arg, epochs=1000, symmetric=False)
