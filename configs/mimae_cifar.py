"""MI-MAE at CIFAR size: ViT-Ti, patch 4, four views of 16 tokens; ours.

    python -m mixjax.main --config=configs/mimae_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    variants: :epochs=50 and those of mimae_vitb.py

64 images a step, so 256 views. The gate opens at 0.9, on an average of some 20 steps:
the paper's 0.5 was chosen for normalised pixels, and here they are not. Log-densities
are averaged over the numbers of a latent, not summed: summed, ten times L_min drowns
the reconstruction at this length.
"""

from configs import common, masked


def get_config(arg=""):
    variant = common.arguments(arg, epochs=50, **masked.MIMAE)
    c = masked.views(masked.cifar(variant.epochs), variant)
    c.batch = 64
    c.method.gate.level, c.method.gate.decay = 0.9, 0.95
    c.method.information.reduce = "mean"
    c.schedule.warmup_epochs = 5.0
    for part in (c.evals.knn, c.evals.pictures, c.evals.attention):
        part.every_epochs = 25.0
    return c
