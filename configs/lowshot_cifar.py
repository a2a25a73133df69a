"""Fine-tuning with 1 % or 10 % of the labels of CIFAR-10 and other small sets; ours.

    python -m mixjax.main --config=configs/lowshot_cifar.py:share=10,encoder=vit \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :share=10 (1), :draw=0, the seed of the draw, which is the same share of
    every class; :strong=0, :encoder=, :data= and :mixture= as in finetune_cifar.py
"""

from configs import supervised


def get_config(arg=""):
    v, fields = supervised.variants(
        arg, share=10, encoder="vit", data="c10", draw=0, strong=False
    )
    protocol = f"lowshot/share={v.share}"
    c = supervised.finetune_small(
        v.data, v.encoder, v.strong, protocol, fields["encoder"]
    )
    c.data.split += f" | balanced({v.share / 100}, seed={v.draw})"
    return supervised.mix(c, v.mixture, fields["mixture"])
