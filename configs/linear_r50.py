"""Linear classification on a frozen ResNet-50, ImageNet-1K, as MoCo's code does it.

    python -m mixjax.main --config=configs/linear_r50.py \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :epochs=100

MoCo v1 60.6, v2 67.5; Un-Mix v2 68.6; MixMask 69.2. The best epoch is what MoCo
reports: linear/top1_best.
"""

from configs import common, supervised


def get_config(arg=""):
    return supervised.linear_resnet(common.arguments(arg, epochs=100).epochs)
