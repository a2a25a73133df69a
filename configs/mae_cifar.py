"""MAE at CIFAR size: ViT-Ti, patch 4, 32 px; ours, no paper has it.

    python -m mixjax.main --config=configs/mae_cifar.py \\
        --config.data.source=npz:cifar10.npz --workdir=...
    a .npz with arrays train_image, train_label, test_image, test_label, or
    tfds:cifar10; --config.steps=200 squeezes the recipe into 200 steps.

The whole set stays on the device, crops included. Pixels are predicted as they are:
normalised patch by patch they lack colour, and so would the features. kNN with
k = 200 and T = 0.1, as MoCo's CIFAR code has it, on parts of both splits.
"""

from configs import common


def get_config(arg=""):
    variant = common.arguments(arg, epochs=200)
    c = common.base()
    c.epochs = float(variant.epochs)
    c.batch = 256
    c.data = common.data("npz:cifar10.npz", "train", "test")
    stats = "normalize((.4914, .4822, .4465), (.2023, .1994, .2010))"
    c.data.views = (f"crop(32, scale=(.2, 1)) | flip | {stats}",)
    c.data.eval_view = stats
    c.data.eval_batch = 1000
    c.data.on_device = True
    c.model = common.ConfigDict()
    c.model.precision = "float32"
    c.model.encoder = common.vit("Ti", (32, 32), 4)
    c.model.encoder.pool = "mean"
    c.model.decoder = common.decoder(128, 4, 4)
    c.method = common.ConfigDict(dict(name="mae", mask_ratio=0.75, norm_pix=False))
    c.optim = common.adamw(b2=0.95, weight_decay=0.05)
    c.schedule = common.warmup_cosine(1e-3, "batch/256", warmup_epochs=20.0)
    c.evals = common.ConfigDict()
    c.evals.knn = common.knn(k=200, temperature=0.1, every_epochs=100.0)
    c.evals.knn.bank, c.evals.knn.queries = 5000, 2000
    c.evals.pictures = common.pictures(every_epochs=100.0)
    c.checkpoint.every_epochs = 25.0
    return c
