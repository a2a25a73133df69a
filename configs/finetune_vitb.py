"""Fine-tuning a ViT-B/16 on ImageNet-1K, as MAE's code does (He et al., CVPR 2022).

    python -m mixjax.main --config=configs/finetune_vitb.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :epochs=100, :decay=0.65, :base=5e-4, :image=224,
    :mixture=mixup_cutmix (none, or another of mixjax/mixtures)

MAE, 1600 epochs: 83.6 (83.3 at 800). MixedAE 83.8, MI-MAE 84.1 at 400 epochs.
MI-MAE takes base=1e-3 and decay=.75, MixedAE tries decays of .65 to .75.
Departures: bfloat16 instead of float16.
"""

from configs import common, supervised


def get_config(arg=""):
    v, fields = supervised.variants(arg, epochs=100, decay=0.65, base=5e-4, image=224)
    encoder = common.vit("B", (v.image, v.image), 16)
    encoder.drop_path = 0.1
    c = supervised.finetune(encoder, v.image, v.epochs, v.decay, v.base)
    return supervised.mix(c, v.mixture, fields["mixture"])
