"""Whether each system of segmentation and detection learns a few pictures by heart.

    python bench/dense_overfit.py --coco=DIR --ade=DIR [--only=vitdet] [--steps=500]

Pre-trains a small ViT by MAE and a small ResNet by MoCo on the pictures of a COCO
folder (annotations.json, images/), then trains each system from that run, small
(bench/support/small_dense_recipes.py), on four of them, or on the pictures of an ADE20K
folder, and prints what it finds on the same: AP50 of boxes and masks, or mIoU. Each
number is one command, which is printed. --runs keeps the workdirs, figures of the
predictions among them, and continues in them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from support import record, small_dense_recipes

from mixjax.config import recipes

SIDE = 128
PICTURES = ("072", "073", "370")  # of train2017: few objects, none of them small
PLAIN = "decode_crop({side}, scale=(.5, 1)) | flip | normalize"
CENTRE = "decode_center({side}, resize_to={side}) | normalize"
VIT = {k: small_dense_recipes.TRANSFORMER[k] for k in ("width", "depth", "heads")}
RESNET = {"layers": (1, 1, 1, 1), "widths": (16, 32, 64, 128), "stem_width": 16}
PRE = {  # recipe, encoder, more
    "mae": ("mae_vitb", VIT, {"decoder.width": 64, "decoder.depth": 2}),
    "moco": ("in1k_mocov2", RESNET, {"projector.widths": (64, 32)}),
}
SYSTEMS = {  # recipe, what it begins with, pictures, rate, metrics
    "uper": ("ade20k_uper_vitb:bias=1", "mae", "ade", 2e-3, ("mIoU",)),
    "vitdet": ("coco_vitdet_vitb", "mae", "coco", 1e-3, ("AP50", "APmask50")),
    "cascade": ("coco_cascade_vitl", "mae", "coco", 1e-3, ("AP50", "APmask50")),
    "cascade_detectron2": (
        "coco_cascade_vitl:form=detectron2",
        "mae",
        "coco",
        1e-3,
        ("AP50", "APmask50"),
    ),
    "c4": ("coco_c4_r50", "moco", "coco", 0.02, ("AP50", "APmask50")),
}


def train(name: str, workdir: Path, fields: dict) -> None:
    """One command of the project, printed and run."""
    command = ["-m", "mixjax.main", f"--config=configs/{name}"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.{k}={v}" for k, v in fields.items()]
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=record.ROOT, check=True)


def file_of(text: str) -> str:
    """NAME:ARG -> NAME.py:ARG."""
    name, colon, argument = text.partition(":")
    return f"{name}.py{colon}{argument}"


def pre_train(name: str, options, workdir: Path) -> None:
    """MAE or MoCo on the pictures of the COCO folder, small."""
    recipe, encoder, more = PRE[name]
    known = recipes.flat(recipes.load(f"{record.ROOT}/configs/{recipe}.py").to_dict())
    fields = {f"model.encoder.{k}": v for k, v in encoder.items()}
    fields |= {f"model.{k}": v for k, v in more.items()}
    views = (PLAIN.format(side=SIDE),) * (1 if name == "mae" else 2)
    fields |= {"data.source": f"coco:{options.coco}", "data.split": "train"}
    fields |= {"data.eval_split": "train", "data.views": views, "data.threads": 2}
    fields |= {"data.eval_view": CENTRE.format(side=SIDE), "data.eval_batch": 8}
    fields |= {"model.encoder.image_size": (SIDE, SIDE), "model.precision": "float32"}
    fields |= {"batch": 16, "steps": options.pre_steps, "model.norm.groups": 1}
    fields |= {"method.objective.queue": 256, "evals.pictures.count": 4}
    fields |= {k: 0.0 for k in known if k.endswith("every_epochs")}
    fields["checkpoint.every_epochs"] = 1e6
    train(f"{recipe}.py", workdir, {k: v for k, v in fields.items() if k in known})


def measure(name: str, options, runs: Path) -> dict:
    """Trains a system from its pre-training; its numbers, as it is written down."""
    recipe, origin, kind, rate, metrics = SYSTEMS[name]
    if not (runs / origin / "DONE").exists():
        pre_train(origin, options, runs / origin)
    config = recipes.load(f"{record.ROOT}/configs/{file_of(recipe)}")
    source, split = f"coco:{options.coco}", f"train | listed('{options.listed}')"
    classes = 80
    if kind == "ade":
        source, split, classes = f"ade20k:{options.ade}", "train", 150
    fields = small_dense_recipes.fields(config, source, split, SIDE, classes)
    steps = options.steps * (6 if kind == "ade" else 1)  # there is more to know
    fields |= small_dense_recipes.length(steps, rate)
    fields |= {"batch": 3, "init_from": str(runs / origin), "evals.pictures.count": 3}
    known = recipes.flat(config.to_dict())
    train(file_of(recipe), runs / name, {k: v for k, v in fields.items() if k in known})
    (file,) = (runs / name / "eval").glob(f"*/{steps}.json")
    entry = json.loads(file.read_text())
    protocol = entry["protocol"]
    numbers = {metric: entry["metrics"][f"{protocol}/{metric}"] for metric in metrics}
    shown = "  ".join(f"{k} {v:.1f}" for k, v in numbers.items())
    print(f"{name:<20} {shown}", flush=True)
    return {"system": name, "recipe": recipe, "from": origin, **numbers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--coco", required=True, help="annotations.json and images/")
    parser.add_argument("--ade", required=True, help="pairs NAME.jpg and NAME.png")
    parser.add_argument("--only", default="", help="systems, with commas between")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pre-steps", type=int, default=100)
    parser.add_argument("--runs", default="", help="where workdirs stay")
    parser.add_argument("--json", default="", help="a file for the numbers")
    options = parser.parse_args()
    options.coco = str(Path(options.coco).absolute())
    options.ade = str(Path(options.ade).absolute())
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(options.runs or scratch).absolute()
        runs.mkdir(parents=True, exist_ok=True)
        options.listed = runs / "pictures.txt"
        names = [f"000000000{number}.jpg" for number in PICTURES]
        options.listed.write_text("\n".join(names) + "\n")
        chosen = options.only.split(",") if options.only else SYSTEMS
        rows = [measure(name, options, runs) for name in chosen]
    record.write(options.json, rows)


if __name__ == "__main__":
    main()
