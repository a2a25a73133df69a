"""Fine-tuning with 1 % or 10 % of the labels of CIFAR-10 and other small sets; ours.

    python -m mixjax.main --config=configs/lowshot_cifar.py:share=10,encoder=vit \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :share=10 (1), :encoder=vit (resnet18, swav), :data=c10 (c100, stl, tiny),
    :draw=0, the seed of the draw, which is the same share of every class; :strong=0
"""

from configs import common, supervised


def get_config(arg=""):
    v = common.arguments(arg, share=10, encoder="vit", data="c10", draw=0, strong=False)
    protocol = f"lowshot/share={v.share}"
    c = supervised.finetune_small(v.data, v.encoder, v.strong, protocol)
    c.data.split += f" | balanced({v.share / 100}, seed={v.draw})"
    return c
