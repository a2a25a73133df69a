"""Untrained runs: random weights, saved as a checkpoint."""

import json
from pathlib import Path

import numpy as np

from configs import common
from mixjax.export import weights as store
from mixjax.run.checkpoints import Checkpoints
from mixjax.state import TrainState

LOOSE = {"remat": "none", "drop_path": 0.0}
VIT = LOOSE | dict(name="vit", image_size=(16, 24), channels=3, patch=4, width=24)
VIT |= dict(depth=2, heads=3, mlp_ratio=2.0, position="sincos", pool="class")
VIT |= {"scan": False}
SQUARE = VIT | {"image_size": (16, 16)}
DECODER = dict(width=16, depth=2, heads=2, mlp_ratio=3.0, scan=False, remat="none")
BEIT = {k: v for k, v in VIT.items() if k != "position"}
BEIT |= dict(name="beit", layer_scale=0.1, mask_token=True, pool="mean")
BEIT |= {"relative": "shared"}
SWIN = LOOSE | dict(name="swin", image_size=(32, 32), channels=3, patch=2, width=8)
SWIN |= dict(depths=(2, 1, 1), heads=(1, 2, 4), window=4, mlp_ratio=2.0)
SWIN |= {"mask_token": True}
RESNET = dict(name="resnet", image_size=(17, 24), channels=3, block="bottleneck")
RESNET |= dict(layers=(1, 2, 1, 1), widths=(4, 8, 8, 16), stem="imagenet")
RESNET |= dict(stem_width=4, stem_init="kaiming", zero_init=False, remat="none")
SMALL = RESNET | dict(block="basic", layers=(1, 1), widths=(4, 8), stem="cifar")
NORM = dict(groups=1, interleaved=False, momentum=0.9, eps=1e-5, unbiased=True)
CLASSIFIER = dict(classes=5, init_std=0.01, feature_norm=False)
PROBE = CLASSIFIER | {"feature_norm": True}

MODELS = {  # sections of config.model
    "mae": dict(encoder=SQUARE, decoder=DECODER),
    "vit": dict(encoder=VIT, classifier=CLASSIFIER),
    "vit_mean": dict(encoder=VIT | {"pool": "mean"}, classifier=CLASSIFIER),
    "vit_tuned": dict(
        encoder=VIT | {"pool": "mean_norm", "position": "learned"},
        classifier=CLASSIFIER,
    ),
    "vit_probed": dict(norm=NORM | {"eps": 1e-6}, encoder=VIT, classifier=PROBE),
    "simmim_vit": dict(encoder=BEIT, pixel_head={}),
    "beit": dict(
        encoder=BEIT | dict(relative="each", pool="mean_norm", mask_token=False),
        classifier=CLASSIFIER,
    ),
    "simmim_swin": dict(encoder=SWIN, pixel_head={}),
    "swin": dict(encoder=SWIN | {"mask_token": False}, classifier=CLASSIFIER),
    "resnet": dict(norm=NORM, encoder=RESNET, classifier=CLASSIFIER),
    "small": dict(norm=NORM, encoder=SMALL, classifier=CLASSIFIER),
}
METHODS = {
    "decoder": dict(name="mae", mask_ratio=0.75, norm_pix=True),
    "pixel_head": dict(name="simmim", mask_ratio=0.6, mask_patch=8),
    "classifier": dict(
        name="supervised", trunk="trained", loss="softmax", smoothing=0.0, mixture={}
    ),
}


def drawn(shapes: dict, seed: int) -> dict:
    """Random arrays for {path: shape}; none is 0 or 1, which would hide a mistake.

    Kernels are scaled by their fan-in, so that activations stay bounded.
    """
    rng, found = np.random.default_rng(seed), {}
    for path, shape in shapes.items():
        x = rng.normal(size=shape.shape)
        if path.endswith("kernel"):
            x = x / np.sqrt(np.prod(shape.shape[:-1]))
        elif path.endswith(("scale", "var")):
            x = 1 + 0.2 * np.abs(x)
        else:
            x = 0.1 * x
        found[path] = x.astype(np.float32)
    return found


def save(folder: Path, model: dict, source: str = "digits", teacher=False) -> Path:
    """Saves a run of `model` in `folder` that claims to be at step 3."""
    model = {"precision": "float32", **model}
    encoder, shapes = model["encoder"], store.shapes(model)
    size, channels = encoder["image_size"], encoder["channels"]
    params, stats = store.trees(drawn(shapes, 1))
    copy = dict(zip(("params", "stats"), store.trees(drawn(shapes, 2)), strict=True))
    copy = copy if teacher else {}
    state = TrainState(np.int32(3), params, {}, stats, copy, {})
    c = common.base()
    c.epochs, c.batch = 1.0, 4
    c.data = common.data(source, "train", "test")
    view = f"resize({size}) | normalize((.3,), (.4,))"
    if source != "digits":
        stats = (0.3, 0.4, 0.5)[:channels], (0.2, 0.3, 0.4)[:channels]
        view = f"decode_center({size}, {max(size)}, channels={channels})"
        view += f" | normalize{stats}"
    c.data.views, c.data.eval_view, c.data.eval_batch = (view,), view, 64
    methods = [v for k, v in METHODS.items() if k in model]
    method = methods[0] if methods else {"name": "encoder"}
    c.model, c.method = common.ConfigDict(model), common.ConfigDict(method)
    c.evals = common.ConfigDict()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(c.to_dict()))
    saved = Checkpoints(folder, every=1, last=3, keep=1, keep_every=0)
    saved.save(3, state, {"examples": 4})
    saved.close()
    return folder
