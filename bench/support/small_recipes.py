"""Any recipe, so small that it trains in seconds, and pictures to train it on.

What stays is what makes the recipe: method, losses, optimizer, schedule, precision, and
the ops of its views. What shrinks are widths, depths, pictures, batch and steps.
"""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from mixjax.config.recipes import flat
from mixjax.data import sources
from support import dense_pictures, small_dense_recipes

BATCH, STEPS, CLASSES = 32, 4, 10
SIDES, COUNTS = (32, 64), {"train": 400, "test": 80}
TRANSFORMER = {"width": 32, "depth": 2, "heads": 2}
STAGES = {  # of a backbone with stages, for as many as it has
    "depths": (1, 1, 2, 1),
    "layers": (1, 1, 1, 1),
    "heads": (1, 2, 4, 8),
    "widths": (8, 16, 32, 64),
}
FIELDS = {  # of any recipe that has them
    "batch": BATCH,
    "accumulate": 1,
    "steps": STEPS,
    "model.norm.groups": 8,
    "model.prototypes.count": 16,
    "model.classifier.classes": CLASSES,
    "model.token_projector.width": 16,
    "model.region_projector.width": 8,  # as its projector
    "data.split": "train",
    "data.eval_split": "test",
    "data.eval_batch": 64,
    "data.threads": 2,
    "log.every": 1,
    "evals.knn.bank": 64,
    "evals.knn.queries": 64,
    "evals.knn.k": 20,
    "evals.health.examples": 64,
    "evals.classify.examples": 64,
    "method.objective.size": 16,
}
FIELDS |= {f"model.decoder.{k}": v for k, v in TRANSFORMER.items()}
DENSE = ("segment", "detect")  # methods
SCENES = {  # data.source -> folder, split and classes of dense_sets.py
    "coco": ("coco", "train", 3),
    "voc_objects": ("VOCdevkit", "trainval2007", 20),
    "ade20k": ("ade", "train", 150),
}
SIZED = r"\b(crop|center|resize|decode_crop|decode_center)\((\d+)(, resize_to=(\d+))?"


def small_encoder(encoder) -> dict:
    """{field of any encoder's section: a small value}."""
    staged = any(isinstance(encoder.get(name), tuple) for name in STAGES)
    sizes = TRANSFORMER | {"width": 16 if staged else 32, "window": 2, "stem_width": 8}
    small = {k: v for k, v in sizes.items() if k in encoder}
    for name, values in STAGES.items():
        if isinstance(encoder.get(name), tuple):
            small[name] = values[: len(encoder[name])]
    return small


def fields(config, folder: Path) -> dict:
    """{field: value} that make a recipe small, with pictures from folder/<side>.

    The side of its pictures becomes about 64 where patches are wide, else at most 32.
    """
    if config.method.name in DENSE:
        return dense_fields(config, folder)
    encoder, old = config.model.encoder, flat(config.to_dict())
    was = encoder.image_size[0]
    wide = "patch" in encoder and was > 64
    stored = min(was, SIDES[wide])
    side = stored // encoder.get("patch", 1) * encoder.get("patch", 1)

    def scaled(size: int) -> int:
        return side if size == was else max(4, round(size * side / was / 4) * 4)

    def view(text: str) -> str:
        def sized(found):
            name, size, _, then = found.groups()
            new = f"{name}({scaled(int(size))}"
            return new + (f", resize_to={scaled(int(then))}" if then else "")

        return re.sub(SIZED, sized, text)

    kind = "npz" if config.data.on_device else "folder"
    wanted = {f"model.encoder.{k}": v for k, v in small_encoder(encoder).items()}
    source = folder / kind / (f"{stored}.npz" if kind == "npz" else str(stored))
    wanted |= FIELDS | {
        "data.source": f"{kind}:{source}",
        "data.views": tuple(map(view, config.data.views)),
        "data.eval_view": view(config.data.eval_view),
        "model.encoder.image_size": (side, side),
    }
    if config.data.source == "digits":
        del wanted["data.source"]
    if "|" in config.data.split:  # a part of each class
        wanted["data.split"] = "train | " + config.data.split.split("|", 1)[1].strip()
    for name, value in old.items():
        if name.endswith("every_epochs"):
            wanted[name] = config.epochs
        if name.endswith(".queue"):
            wanted[name] = 2 * BATCH
        if name.endswith("or.widths"):
            wanted[name] = (16,) * (len(value) - 1) + (8,)
    if "resolutions" in config.method:
        wanted["method.resolutions"] = tuple(map(scaled, config.method.resolutions))
    if config.optim.get("layers"):
        wanted["optim.layers"] = wanted.get(
            "model.encoder.depths", (TRANSFORMER["depth"],)
        )
    return {k: v for k, v in wanted.items() if k in old and old[k] != v}


def dense_fields(config, folder: Path) -> dict:
    """fields() of a recipe of segmentation or detection."""
    kind = config.data.source.partition(":")[0]
    place, split, classes = SCENES[kind]
    source = f"{kind}:{folder / 'dense' / place}"
    wanted = small_dense_recipes.fields(
        config, source, split, dense_pictures.SIDE, classes
    )
    wanted |= {"steps": STEPS, "batch": dense_pictures.TRAINED, "log.every": 1}
    wanted.pop("model.precision", None)
    return wanted


def pictures(folder: Path) -> Path:
    """Digits in colour, for fields(): files in class folders, and arrays; `folder`.

    And shapes in colour with boxes, outlines and maps of classes, in folder/dense.
    """
    dense_pictures.save(folder / "dense")
    colour = np.random.default_rng(0)
    for side in SIDES:
        arrays = {}
        for split, count in COUNTS.items():
            source = sources.open_source("digits", split, "")
            labels = source.labels[:count]
            images = np.zeros((count, side, side, 3), "u1")
            for i, label in enumerate(labels):
                digit = Image.fromarray(source.images[i, :, :, 0])
                gray = np.asarray(digit.resize((side, side), Image.BICUBIC))
                images[i] = gray[:, :, None] * colour.uniform(0.3, 1.0, 3)
                place = folder / "folder" / str(side) / split / str(label)
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[i]).save(place / f"{i:03}.png")
            arrays |= {f"{split}_image": images, f"{split}_label": labels}
        (folder / "npz").mkdir(exist_ok=True)
        np.savez(folder / "npz" / f"{side}.npz", **arrays)
    return folder
