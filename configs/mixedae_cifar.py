"""MixedAE at CIFAR size: ViT-Ti, patch 4, cells of 8 pixels; ours, no paper has it.

    python -m mixjax.main --config=configs/mixedae_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    variants: :epochs=200 and those of mixedae_vitb.py

The 8 x 8 tokens are 4 x 4 cells, so every image of a group of four owns a quarter.
Without segment codes, and with the contrast at full weight: with the codes it is met by
reading them, and in short runs nothing teaches the attention to tell images apart.
:segment=1 has them.
"""

from configs import common, masked


def get_config(arg=""):
    given = masked.MIXEDAE | {"segment": False}
    variant = common.arguments(arg, epochs=200, **given)
    c = masked.mix(masked.cifar(variant.epochs), variant, mask_patch=8)
    c.method.contrast.weight = 1.0
    return c
