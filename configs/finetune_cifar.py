"""Fine-tuning on CIFAR-10 and other small sets; ours, no paper has it.

    python -m mixjax.main --config=configs/finetune_cifar.py:encoder=vit \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :encoder=vit (resnet18, swav), :data=c10 (c100, stl, tiny), :strong=1
    (0: crops and flips alone)
"""

from configs import common, supervised


def get_config(arg=""):
    v = common.arguments(arg, encoder="vit", data="c10", strong=True)
    return supervised.finetune_small(v.data, v.encoder, v.strong, "finetune")
