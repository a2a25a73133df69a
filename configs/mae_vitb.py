"""MAE ViT-B/16 on ImageNet-1K (He et al., CVPR 2022, table 3 and appendix A.1).

    python -m mixjax.main --config=configs/mae_vitb.py --workdir=...
    variants: :epochs=1600 (800, the ablations' length, is usual)

Expected, fine-tuned: 83.3 at 800, 83.6 at 1600 epochs; linear probe 68.0 at 1600.
About 42 H200-hours per 800 epochs at 40 % of the peak (1.2e20 operations at 1600).
Departures: bfloat16 instead of float16, without loss scaling.
"""

from configs import common


def get_config(arg=""):
    """The recipe of the official code (PRETRAIN.md): 4096 images, 40 epochs warm-up."""
    return recipe("B", 16, arg)


def recipe(size: str, patch: int, arg: str):
    """MAE's ImageNet recipe for a ViT of `size`; all sizes share it."""
    variant = common.arguments(arg, epochs=800)
    c = common.base()
    c.epochs = float(variant.epochs)
    c.batch = 4096
    c.data = common.data("tfds:imagenet2012", "train", "validation")
    c.data.views = ("decode_crop(224, scale=(.2, 1)) | flip | normalize",)
    c.data.eval_view = "decode_center(224, resize_to=256) | normalize"
    c.data.eval_batch = 1024
    c.model = common.ConfigDict()
    c.model.precision = "bfloat16"
    c.model.encoder = common.vit(size, (224, 224), patch)
    c.model.decoder = common.ConfigDict()
    c.model.decoder.width, c.model.decoder.depth = 512, 8
    c.model.decoder.heads, c.model.decoder.mlp_ratio = 16, 4.0
    c.model.decoder.remat, c.model.decoder.scan = "none", False
    c.method = common.ConfigDict(dict(name="mae", mask_ratio=0.75, norm_pix=True))
    c.optim = common.adamw(b2=0.95, weight_decay=0.05)
    c.schedule = common.warmup_cosine(1.5e-4, "batch/256", warmup_epochs=40.0)
    c.evals = common.ConfigDict()
    c.evals.knn = common.knn(k=20, temperature=0.07, every_epochs=50.0)
    c.evals.knn.bank = 128_000
    c.evals.pictures = common.pictures(every_epochs=20.0)
    return c
