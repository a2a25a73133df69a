"""MI-SimMIM at CIFAR size: ViT-Ti as SimMIM has it, two complementary views; ours.

    python -m mixjax.main --config=configs/misimmim_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    variants: :epochs=100 and those of misimmim_swinb.py

32 images a step, so 64 views. The gate opens at 0.8, on an average of some 20 steps,
after a hundred steps or so: the paper's 0.5 is not reached in three hundred.
Log-densities are averaged over the numbers of a latent, as in mimae_cifar.py.
"""

from configs import common, masked


def get_config(arg=""):
    variant = common.arguments(arg, epochs=100, **masked.MISIMMIM)
    c = masked.simmim_cifar(variant.epochs)
    c.method.name, c.method.mask_ratio = "misimmim", 0.5
    c.batch = 32
    masked.inform(c, variant)
    c.method.gate.level, c.method.gate.decay = 0.8, 0.95
    c.method.information.reduce = "mean"
    return c
