"""Fine-tuning on CIFAR-10 and other small sets; ours, no paper has it.

    python -m mixjax.main --config=configs/finetune_cifar.py:encoder=vit \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :encoder=vit (resnet18, swav, or another of mixjax/models, whose fields
    are encoder.FIELD=VALUE), :data=c10 (c100, stl, tiny), :strong=1 (0: crops and flips
    alone), :mixture=mixup_cutmix (none, or another of mixjax/mixtures, whose fields are
    mixture.FIELD=VALUE)
"""

from configs import supervised


def get_config(arg=""):
    v, fields = supervised.variants(arg, encoder="vit", data="c10", strong=True)
    c = supervised.finetune_small(
        v.data, v.encoder, v.strong, "finetune", fields["encoder"]
    )
    return supervised.mix(c, v.mixture, fields["mixture"])
