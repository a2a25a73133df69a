"""Fine-tuning a Swin-B at 224 px, window 7, as SimMIM's code does (Xie et al., 2022).

    python -m mixjax.main --config=configs/finetune_swinb.py \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :epochs=100, :decay=0.8 (0.9 after 100 epochs of pre-training),
    :mixture=mixup_cutmix (none, or another of mixjax/mixtures)

Expected: 84.0 after 800 epochs, 83.5 after 100. Tables of position biases grow from the
window of 6 that it was pre-trained with.
Departures: bfloat16 instead of float16; start and end of the rate decay with the layer,
as all of it does, where the code leaves these two alone.
"""

from configs import common, supervised


def get_config(arg=""):
    v, fields = supervised.variants(arg, epochs=100, decay=0.8)
    encoder = common.swin("B", (224, 224), 7)
    c = supervised.finetune_simmim(encoder, 224, v.epochs, v.decay)
    return supervised.mix(c, v.mixture, fields["mixture"])
