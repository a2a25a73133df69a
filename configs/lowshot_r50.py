"""A ResNet-50 with 1 % or 10 % of ImageNet-1K's labels, as SwAV's code does it.

    python -m mixjax.main --config=configs/lowshot_r50.py \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :share=1 (10)

The pictures are those of SimCLR's lists. All of the network is trained, batch
statistics too, although MixMask speaks of frozen weights: it cites this configuration
and calls it fine-tuning. The best epoch is what SwAV reports.
"""

from configs import common, supervised


def get_config(arg=""):
    return supervised.lowshot_resnet(common.arguments(arg, share=1).share)
