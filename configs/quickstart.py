"""MAE on handwritten digits, no download: a first run in under three minutes.

    python -m mixjax.main --config=configs/quickstart.py

1,437 digits of 8 x 8 pixels, seen at 32 x 32; three quarters of each are hidden, and a
small ViT learns to paint them. The nearest neighbours of its features then tell the
ten digits apart better than those of the same network untrained.
"""

from configs import common


def get_config(arg=""):
    common.arguments(arg)
    c = common.base()
    c.epochs = 100.0
    c.batch = 64
    c.data = common.data("digits", "train", "test")
    c.data.views = ("crop(16, scale=(.6, 1)) | normalize((.3,), (.4,))",)
    c.data.eval_view = "resize(16) | normalize((.3,), (.4,))"
    c.data.eval_batch = 512
    c.data.on_device = True
    c.model = common.ConfigDict()
    c.model.precision = "float32"
    c.model.encoder = common.vit("Ti", (16, 16), 4)
    c.model.encoder.channels = 1
    c.model.encoder.width, c.model.encoder.depth, c.model.encoder.heads = 96, 4, 4
    c.model.encoder.pool = "mean"
    c.model.decoder = common.decoder(64, 2, 4)
    c.method = common.ConfigDict(dict(name="mae", mask_ratio=0.75, norm_pix=False))
    c.optim = common.adamw(b2=0.95, weight_decay=0.05)
    c.schedule = common.warmup_cosine(2e-3, "none", warmup_epochs=10.0)
    c.evals = common.ConfigDict()
    c.evals.knn = common.knn(k=20, temperature=0.07, every_epochs=25.0)
    c.evals.pictures = common.pictures(every_epochs=50.0)
    c.checkpoint.every_epochs = 10.0
    return c
