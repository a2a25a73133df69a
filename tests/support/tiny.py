"""A recipe that trains in seconds, and runs of it inside this process."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixjax.config import recipes, registry
from mixjax.errors import Preempted
from mixjax.run.workdir import Workdir
from mixjax.runtime.signals import Interrupt
from mixjax.training import loop

ROOT = Path(__file__).parents[2]
FIELDS = {
    "batch": 16,
    "steps": 12,
    "model.encoder.width": 16,
    "model.encoder.depth": 2,
    "model.encoder.heads": 2,
    "model.decoder.width": 16,
    "model.decoder.depth": 1,
    "model.decoder.heads": 2,
    "data.eval_batch": 64,
    "evals.knn.every_epochs": 50.0,
    "evals.knn.bank": 100,
    "evals.knn.queries": 50,
    "evals.knn.chunk": 64,
    "evals.pictures.count": 2,
    "checkpoint.every_epochs": 50.0,
    "log.every": 4,
}


def of_files(folder, **changes) -> dict:
    """The changes that read grey picture files from `folder`."""
    normal = "normalize((.3,), (.4,))"
    return changes | {
        "data__source": f"folder:{folder}",
        "data__on_device": False,
        "data__views": f"decode_crop(16, channels=1) | flip | {normal}",
        "data__eval_view": f"decode_center(16, 18, channels=1) | {normal}",
    }


def flags(**changes) -> list[str]:
    """The command line of a tiny run; changes: dots are written as two underscores."""
    fields = FIELDS | {k.replace("__", "."): v for k, v in changes.items()}
    return [
        f"--config={ROOT}/configs/quickstart.py",
        *(f"--config.{k}={v}" for k, v in fields.items()),
    ]


def config(**changes):
    """The configuration of a tiny run."""
    return recipes.read(flags(**changes))[0]


# Masked methods: those with a recipe for CIFAR-10 of their name.
METHODS = tuple(
    name
    for name in registry.names("mixjax.methods")
    if (ROOT / f"configs/{name}_cifar.py").is_file()
)


def masked(name: str, variants: str = "", **changes):
    """The CIFAR recipe of a masked method, tiny and on the embedded digits."""
    c = recipes.load(f"{ROOT}/configs/{name}_cifar.py:{variants}")
    quick = recipes.load(f"{ROOT}/configs/quickstart.py")
    c.data, c.evals = quick.data, quick.evals
    c.model.encoder.image_size, c.model.encoder.channels = (16, 16), 1
    fields = {
        k: v for k, v in FIELDS.items() if "decoder" not in k or "decoder" in c.model
    }
    fields["batch"] = 32  # groups of four on eight devices
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    c.update_from_flattened_dict(fields)
    return c


class StopAt(Interrupt):
    """An interrupt that comes when it has been asked for the nth time."""

    def __init__(self, times: int):
        super().__init__()
        self.left = times

    def __bool__(self):
        self.left -= 1
        if self.left < 0:
            self.name = "SIGTERM"
        return super().__bool__()


def run(workdir, settings, stop=None) -> Path:
    """Trains in this process; an interrupted run leaves as such."""
    with Workdir(str(workdir), settings) as folder:
        try:
            loop.train(settings, folder, Interrupt() if stop is None else stop)
        except Preempted:
            assert stop is not None
        return folder.path


def metrics(folder: Path, name: str = "train/loss") -> dict[int, float]:
    """{step: value} of one metric."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {x["step"]: x[name] for x in found if name in x}


def saved_arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read without knowing what it should hold."""
    path = folder / "checkpoints" / str(step) / "state"
    there = ocp.PyTreeCheckpointHandler().metadata(path).tree
    with ocp.PyTreeCheckpointer() as reader:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there
        )
        tree = reader.restore(path, restore_args=as_numpy)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_run(one: Path, two: Path, step: int) -> None:
    """Equal to the last bit: all arrays of the last checkpoint, and the metrics."""
    first, second = saved_arrays(one, step), saved_arrays(two, step)
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    text = (one / "metrics.jsonl").read_bytes()
    assert text and text == (two / "metrics.jsonl").read_bytes()


# Framework -> (recipe, its variants): siamese recipes for CIFAR-10, and two variants.
FRAMEWORKS = {
    path.stem.removeprefix("c10_"): (path.stem, "")
    for path in sorted((ROOT / "configs").glob("c10_*.py"))
    if "siamese.recipe(" in path.read_text()
}
FRAMEWORKS |= {
    "moco_sym": ("c10_moco", "symmetric=1"),
    "wmse4": ("c10_wmse", "views=4"),
}


def siamese(framework: str, mixture: str = "none", more: str = "", **changes):
    """The CIFAR recipe of a siamese method with a narrow ResNet on 16-pixel digits."""
    name, variants = FRAMEWORKS[framework]
    arg = ",".join(filter(None, (variants, f"mixture={mixture}", more)))
    c = recipes.load(f"{ROOT}/configs/{name}.py:{arg}")
    quick = recipes.load(f"{ROOT}/configs/quickstart.py")
    c.data.source, c.data.split = quick.data.source, quick.data.split
    c.data.eval_split = quick.data.eval_split
    stats = "normalize((.3,), (.4,))"
    views = f"decode(channels=1) | crop(16, scale=(.5, 1)) | flip | {stats}"
    c.data.views = (views,) * len(c.data.views)
    c.data.eval_view = f"decode(channels=1) | resize(16) | {stats}"
    encoder = c.model.encoder
    encoder.image_size, encoder.channels = (16, 16), 1
    if encoder.name == "resnet":
        encoder.layers, encoder.widths, encoder.stem_width = (1, 1), (8, 16), 8
    out = 8
    for part in ("projector", "predictor"):
        if part in c.model:
            hidden = len(c.model[part].widths) - 1
            c.model[part].widths = (16,) * hidden + (out,)
    if "prototypes" in c.model:
        c.model.prototypes.count = 6
    objective = c.method.objective
    if "queue" in objective:
        objective.queue = 64
    if "size" in objective:
        objective.size = 16
    c.batch, c.steps = 32, 12
    fields = {
        k: v for k, v in FIELDS.items() if k.startswith(("data", "checkpoint", "log"))
    }
    fields |= {"evals.knn.k": 5, "evals.knn.every_epochs": 50.0}
    fields |= {k: v for k, v in FIELDS.items() if k.startswith("evals.")}
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    c.update_from_flattened_dict(fields)
    return c


def supervised(name: str, variants: str = "", **changes):
    """The CIFAR recipe of an evaluation, tiny and on the embedded digits.

    Of an encoder with stages their numbers stay as `variants` say.
    """
    c = recipes.load(f"{ROOT}/configs/{name}_cifar.py:{variants}")
    quick = recipes.load(f"{ROOT}/configs/quickstart.py")
    split = c.data.split.replace("train", quick.data.split)
    c.data, c.data.split = quick.data, split
    encoder = c.model.encoder
    encoder.image_size, encoder.channels = (16, 16), 1
    fields = {"model.classifier.classes": 10, "batch": 32, "steps": 12}
    if encoder.name == "resnet":
        encoder.layers, encoder.widths, encoder.stem_width = (1, 1), (8, 16), 8
    else:
        names = ("width", "depth", "heads")
        names = [k for k in names if not isinstance(encoder.get(k, ()), tuple)]
        fields |= {f"model.encoder.{k}": FIELDS[f"model.encoder.{k}"] for k in names}
        if c.optim.layers:
            fields["optim.layers"] = encoder.get("depths", (2,))
    if "chunk" in c.method.mixture:
        fields["method.mixture.chunk"] = 4
    c.update_from_flattened_dict(fields)
    rest = ("data", "checkpoint", "log")
    fields = {k: v for k, v in FIELDS.items() if k.startswith(rest)}
    del c.evals.pictures
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    c.update_from_flattened_dict(fields)
    return c
