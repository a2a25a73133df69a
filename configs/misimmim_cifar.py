"""MI-SimMIM at CIFAR size: ViT-Ti as SimMIM has it, two complementary views; ours.

    python -m mixjax.main --config=configs/misimmim_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    variants: :epochs=100 and those of misimmim_swinb.py
"""

from configs import common, masked


def get_config(arg=""):
    variant = common.arguments(arg, epochs=100, **masked.MISIMMIM)
    c = masked.simmim_cifar(variant.epochs)
    c.method.name, c.method.mask_ratio = "misimmim", 0.5
    c.batch //= 2  # two views of each
    return masked.inform(c, variant)
