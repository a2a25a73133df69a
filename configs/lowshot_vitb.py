"""Fine-tuning a ViT-B/16 with 1 % or 10 % of ImageNet-1K's labels (SimCLR's lists).

    python -m mixjax.main --config=configs/lowshot_vitb.py \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :share=1 (10), :size=B (S, L), :epochs=100, :mixture=mixup_cutmix
    (none, or another of mixjax/mixtures)

MI-MAE, table 4, names 45.4 for MAE of 800 epochs and 51.1 of 1600, and no recipe: this
is the fine-tuning of MAE's code with batch 512 and decay 0.75. A calibrated protocol:
length, rate and mixing are to be settled once, on a MAE, and kept for all methods.
"""

from configs import common, supervised


def get_config(arg=""):
    v, fields = supervised.variants(arg, share=1, size="B", epochs=100)
    encoder = common.vit(v.size, (224, 224), 16)
    encoder.drop_path = 0.1
    c = supervised.finetune(encoder, 224, v.epochs, 0.75, 1e-3)
    c.batch = 512
    c.data.source = common.choice("share", v.share, supervised.SIMCLR)
    c.evals.classify.protocol = f"lowshot/share={v.share}"
    c.evals.classify.every_epochs = 10.0
    return supervised.mix(c, v.mixture, fields["mixture"])
