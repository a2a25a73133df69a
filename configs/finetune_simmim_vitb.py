"""Fine-tuning SimMIM's ViT-B/16 at 224 px, as its code does (Xie et al., CVPR 2022).

    python -m mixjax.main --config=configs/finetune_simmim_vitb.py \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :epochs=100, :decay=0.65,
    :mixture=mixup_cutmix (none, or another of mixjax/mixtures)

Expected: 83.8. Every block gets a copy of the one table of position biases.
Departures: bfloat16 instead of float16; start and end of the rate decay with the layer,
as all of it does, where the code leaves these two alone.
"""

from configs import common, supervised


def get_config(arg=""):
    v, fields = supervised.variants(arg, epochs=100, decay=0.65)
    encoder = common.beit("B", (224, 224), 16)
    c = supervised.finetune_simmim(encoder, 224, v.epochs, v.decay)
    return supervised.mix(c, v.mixture, fields["mixture"])
