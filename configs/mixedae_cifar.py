"""MixedAE at CIFAR size: ViT-Ti, patch 4, cells of 8 pixels; ours, no paper has it.

    python -m mixjax.main --config=configs/mixedae_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    variants: :epochs=200 and those of mixedae_vitb.py

The 8 x 8 tokens are 4 x 4 cells, so every image of a group of four owns a quarter.
"""

from configs import common, masked


def get_config(arg=""):
    variant = common.arguments(arg, epochs=200, **masked.MIXEDAE)
    return masked.mix(masked.cifar(variant.epochs), variant, mask_patch=8)
