"""MAE at CIFAR size: ViT-Ti, patch 4, 32 px; ours, no paper has it.

    python -m mixjax.main --config=configs/mae_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    a .npz with arrays train_image, train_label, test_image, test_label, or
    tfds:cifar10; --config.steps=200 squeezes the recipe into 200 steps.
    variants: :epochs=200

kNN with k = 200 and T = 0.1, as MoCo's CIFAR code has it, on parts of both splits.
"""

from configs import common, masked


def get_config(arg=""):
    return masked.cifar(common.arguments(arg, epochs=200).epochs)
