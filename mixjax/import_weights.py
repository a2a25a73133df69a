"""python -m mixjax.import_weights --from=FILE --workdir=RUN [--image_size=H[xW]]

Makes a run of a file of weights: the official MAE and MoCo files, SimMIM's, timm's,
torchvision's, Hugging Face's and detectron2's, and whatever `python -m mixjax.export`
writes. The run can be evaluated, looked at, exported and named as init_from. Nothing in
the file is run: a .pth or .pkl that asks for more than tensors and plain data is
refused.

  --from=FILE            .safetensors, .pth, .pt, .pkl or .npz
  --workdir=RUN          a new folder
  --config=FILE[:ARG]    the recipe that the run gets its data and evaluations from
  --image_size=H[xW]     of the pictures; positions are resampled to it
  --config.FIELD=VALUE   other values, such as --config.data.source=folder:DIR; heads
                         that the file does not say: --config.model.encoder.heads=6
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from mixjax.config import recipes
from mixjax.errors import UsageError
from mixjax.runtime import cli

FLAGS = ("from", "workdir", "config", "image_size")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def frame(encoder) -> dict:
    """What a run needs beside its model, where neither file nor recipe says it."""
    size = tuple(encoder["image_size"])
    many = lambda x: x if encoder["channels"] == 3 else x[: encoder["channels"]]
    wide = round(max(size) * 256 / 224)
    view = f"decode_center({size}, {wide}, channels={encoder['channels']})"
    view += f" | normalize({many(MEAN)}, {many(STD)})"
    data = dict(source="tfds:imagenet2012", directory="", split="train")
    data |= dict(eval_split="validation", on_device=False, threads=16, prefetch=2)
    data |= dict(views=(view,), eval_view=view, eval_batch=256)
    knn = dict(name="knn", vote="weighted", every_epochs=1.0, at_start=True, k=20)
    knn |= dict(temperature=0.07, bank=0, queries=0, chunk=512)
    rest = dict(seed=0, init_from="", steps=None, epochs=0.0, batch=1, accumulate=1)
    return rest | dict(data=data, evals=dict(knn=knn))


def method_of(model, old, encoder) -> dict:
    """The section of a method that has just the parts of `model`.

    old: the method that trained them, as far as it is known.
    """
    kept = {"mae": "decoder", "simmim": "pixel_head", "supervised": "classifier"}
    if kept.get(old.get("name"), "") in model:
        return dict(old)
    if "decoder" in model:
        ratio, norm = old.get("mask_ratio", 0.75), old.get("norm_pix", False)
        return dict(name="mae", mask_ratio=ratio, norm_pix=norm)
    if "pixel_head" in model:
        patch, size = encoder["patch"], encoder["image_size"]
        cells = [c for c in (32, 2 * patch, patch) if c % patch == 0]
        cell = next(c for c in cells if all(side % c == 0 for side in size))
        return dict(name="simmim", mask_ratio=0.6, mask_patch=cell)
    if "classifier" in model:
        how = dict(trunk="trained", loss="softmax", smoothing=0.0, mixture={})
        return dict(name="supervised", **how)
    return dict(name="encoder")


def settings(weights, recipe: str | None, fields: dict):
    """The configuration of the new run: a ConfigDict."""
    from ml_collections import ConfigDict

    encoder = weights.model["encoder"]
    config = frame(encoder)
    if recipe:
        config |= recipes.load(recipe).to_dict()
    elif "data" in weights.config:
        config |= weights.config
    old = weights.config.get("method", {})
    config["model"] = weights.model
    config["method"] = method_of(weights.model, old, encoder)
    config["init_from"] = ""
    return recipes.override(ConfigDict(as_tuples(config)), fields)


def as_tuples(value):
    """Lists as tuples, as recipes have them."""
    if isinstance(value, dict):
        return {k: as_tuples(v) for k, v in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def hints_of(
    fields: dict, size: tuple[int, int] | None, recipe: str | None = None
) -> dict:
    """What flags, and a recipe's model, say about a model that is not known yet."""
    model = recipes.load(recipe).to_dict().get("model", {}) if recipe else {}
    hints = {part: dict(model.get(part, {})) for part in ("encoder", "decoder")}
    for name, text in fields.items():
        _, *path = name.split(".")
        if len(path) == 3 and path[:2] in (["model", "encoder"], ["model", "decoder"]):
            value = int(text) if recipes.is_whole(text) else text
            hints[path[1]][path[2]] = value
    if size:
        hints["encoder"]["image_size"] = size
    return hints


def save(weights, config, workdir: Path) -> None:
    """Writes the run; nothing is there unless all of it is."""
    import numpy as np

    from mixjax.export import weights as store
    from mixjax.run.checkpoints import Checkpoints
    from mixjax.state import TrainState

    beside = workdir.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=".import-", dir=beside))
    try:
        params, stats = store.trees(weights.arrays)
        empty = dict(opt_state={}, teacher={}, memory={})
        state = TrainState(step=np.int32(0), params=params, stats=stats, **empty)
        saved = Checkpoints(root, every=0, last=0, keep=1, keep_every=0)
        notes = {"window": [], "metrics_bytes": 0, "evaluated": [], "examples": 0}
        saved.save(0, state, notes)
        saved.close()
        text = json.dumps(config.to_dict(), indent=2, default=str)
        (root / "config.json").write_text(text + "\n")
        (root / "DONE").write_text("0\n")
        os.replace(root, workdir.absolute())
    finally:
        shutil.rmtree(root, ignore_errors=True)


def make(given: dict, fields: dict) -> list[str]:
    """Does what the flags say; returns lines to print."""
    from mixjax.export import __main__ as export
    from mixjax.export import read_foreign
    from mixjax.export import weights as store
    from mixjax.run import console

    console.start()
    path, workdir = (Path(given[k]).expanduser() for k in ("from", "workdir"))
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UsageError(f"--workdir={workdir} is there already; name a new folder.")
    size = export.size_of(given["image_size"]) if "image_size" in given else None
    what = f"--from={given['from']}"
    hints = hints_of(fields, size, given.get("config"))
    weights = read_foreign.read(path, what, hints)
    if size:
        weights = store.resized(weights, size)
    config = settings(weights, given.get("config"), fields)
    parts = ", ".join(weights.parts)
    weights = weights._replace(model=config.model.to_dict())
    store.check(weights, what)
    save(weights, config, workdir)
    count = sum(x.size for x in weights.arrays.values())
    name = weights.model["encoder"]["name"]
    return [f"{name}: {parts}, {count} numbers", f"{workdir}"]


def run(argv: list[str]) -> int:
    """Imports as the flags (no program's name) say; returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    def work():
        given, fields = cli.flags(argv, FLAGS)
        cli.need(given, "from", "name a file")
        cli.need(given, "workdir", "name a new folder")
        for line in make(given, fields):
            print(line)

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
