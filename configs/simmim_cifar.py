"""SimMIM at CIFAR size: ViT-Ti as SimMIM has it, patch 4, cells of 8 pixels; ours.

    python -m mixjax.main --config=configs/simmim_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    variants: :epochs=200
"""

from configs import common, masked


def get_config(arg=""):
    return masked.simmim_cifar(common.arguments(arg, epochs=200).epochs)
