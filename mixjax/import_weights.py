"""python -m mixjax.import_weights --from=FILE --workdir=RUN [--image_size=H[xW]]

Makes a run out of a file of weights: of the official code of MAE and MoCo, SimMIM,
timm, torchvision, Hugging Face or detectron2, or of `python -m mixjax.export`. The run
can be evaluated, looked at, exported and named as init_from. Nothing in the file is
executed: a .pth or .pkl that asks for more than tensors and plain data is refused.

  --from=FILE            .safetensors, .pth, .pt, .pkl or .npz
  --workdir=RUN          a new folder
  --config=FILE[:ARG]    the recipe whose data and evaluations the run takes over
  --image_size=H[xW]     of the images; positions are resampled to it
  --config.FIELD=VALUE   other values, such as --config.data.source=folder:DIR, or what
                         the file does not tell: --config.model.encoder.heads=6
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
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB


def default_config(encoder) -> dict:
    """Everything that a run needs beside its model: evaluation by k-NN on ImageNet.

    For what neither the file nor a recipe tells. encoder: its section of config.model.
    """
    size, channels = tuple(encoder["image_size"]), encoder["channels"]
    # The usual evaluation: resize the shorter side to 256, then crop 224 in the middle.
    resized = round(max(size) * 256 / 224)
    view = f"decode_center({size}, {resized}, channels={channels})"
    view += f" | normalize({MEAN[:channels]}, {STD[:channels]})"
    data = dict(source="tfds:imagenet2012", directory="", split="train")
    data |= dict(eval_split="validation", on_device=False, threads=16, prefetch=2)
    data |= dict(views=(view,), eval_view=view, eval_batch=256)
    knn = dict(name="knn", vote="weighted", every_epochs=1.0, at_start=True, k=20)
    knn |= dict(temperature=0.07, bank=0, queries=0, chunk=512)
    training = dict(seed=0, init_from="", steps=None, epochs=0.0, batch=1)
    training |= dict(accumulate=1)  # there is none, but every run has these fields
    return training | dict(data=data, evals=dict(knn=knn))


def method_of(model, old, encoder) -> dict:
    """The section of a method that has exactly the parts of `model`.

    old: the section of the method that trained them, as far as it is known.
    """
    parts = {"mae": "decoder", "simmim": "pixel_head", "supervised": "classifier"}
    if parts.get(old.get("name"), "") in model:
        return dict(old)
    if "decoder" in model:
        ratio, norm = old.get("mask_ratio", 0.75), old.get("norm_pix", False)
        return dict(name="mae", mask_ratio=ratio, norm_pix=norm)
    if "pixel_head" in model:
        patch, size = encoder["patch"], encoder["image_size"]
        # SimMIM masks squares of 32 pixels, which have to fill the image.
        sides = [s for s in (32, 2 * patch, patch) if s % patch == 0]
        mask_patch = next(s for s in sides if all(x % s == 0 for x in size))
        return dict(name="simmim", mask_ratio=0.6, mask_patch=mask_patch)
    if "classifier" in model:
        training = dict(trunk="trained", loss="softmax", smoothing=0.0, mixture={})
        return dict(name="supervised", **training)
    return dict(name="encoder")


def config_for(weights, recipe: str | None, fields: dict):
    """The ConfigDict of the new run.

    Later ones override earlier ones: defaults, the recipe or else the file's own
    configuration, the file's model, `fields` of flags.
    """
    from ml_collections import ConfigDict

    encoder = weights.model["encoder"]
    config = default_config(encoder)
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
    """Hints for read_foreign.read: sections of config.model from a recipe and flags.

    fields: {"config.model.encoder.heads": "6"}, from flags --config.FIELD=VALUE.
    """
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
    """Writes the run's folder, as a whole or not at all."""
    import numpy as np

    from mixjax.export import weights as store
    from mixjax.run.checkpoints import Checkpoints
    from mixjax.state import TrainState

    # Beside the workdir, since only on one disk a folder is renamed atomically.
    parent = workdir.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=".import-", dir=parent))
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
        (root / "DONE").write_text("0\n")  # the run has no step to train
        os.replace(root, workdir.absolute())
    finally:
        shutil.rmtree(root, ignore_errors=True)


def make(flags: dict, fields: dict) -> list[str]:
    """Does what the flags say; returns lines to print."""
    from mixjax.export import __main__ as export
    from mixjax.export import read_foreign
    from mixjax.export import weights as store
    from mixjax.run import console

    console.start()
    path, workdir = (Path(flags[k]).expanduser() for k in ("from", "workdir"))
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UsageError(f"--workdir={workdir} exists already; name a new folder.")
    size = export.size_of(flags["image_size"]) if "image_size" in flags else None
    source = f"--from={flags['from']}"
    hints = hints_of(fields, size, flags.get("config"))
    weights = read_foreign.read(path, source, hints)
    if size:
        weights = store.resized(weights, size)
    config = config_for(weights, flags.get("config"), fields)
    parts = ", ".join(weights.parts)
    weights = weights._replace(model=config.model.to_dict())
    # Fields of flags may have changed the model.
    store.check(weights, source)
    save(weights, config, workdir)
    count = sum(x.size for x in weights.arrays.values())
    name = weights.model["encoder"]["name"]
    return [f"{name}: {parts}, {count} numbers", f"{workdir}"]


def run(argv: list[str]) -> int:
    """Imports as the flags (without the program's name) say; returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    def work():
        flags, fields = cli.flags(argv, FLAGS)
        cli.need(flags, "from", "name a file")
        cli.need(flags, "workdir", "name a new folder")
        for line in make(flags, fields):
            print(line)

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
