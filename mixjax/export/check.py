"""--check: the same pictures through our network and through torch's with the file.

torch runs in another process (torch_side.py). The difference of a number is counted
in units of the largest of its kind, or of 1 where that is smaller: features of an
untrained residual network reach hundreds, and float32 has seven digits.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import data
from mixjax.errors import UsageError
from mixjax.export import weights as store
from mixjax.export.formats import TOLERANCE, notes
from mixjax.export.weights import Weights
from mixjax.models.resnet import STEMS
from mixjax.sharding import meshes

SCRIPT = Path(__file__).with_name("torch_side.py")
REFERENCE = Path(__file__).parents[2] / "tests" / "support" / "torch_models.py"
COUNT = 4
ROWS = {  # what is compared, as our network calls it -> how torch's has it
    "tokens": lambda x: x,
    "map": lambda x: x,
    "features": lambda x: x,
    "logits": lambda x: x,
    "prediction": lambda x: x,
    "flat_map": lambda x: x.reshape(len(x), -1, x.shape[-1]),
}


class Difference(NamedTuple):
    """Of one kind of output: largest and mean difference, and the largest value."""

    name: str
    size: tuple[int, int]  # of the pictures
    largest: float
    mean: float
    top: float

    @property
    def relative(self) -> float:
        return self.largest / max(1.0, self.top)


class Result(NamedTuple):
    """What --check found; tolerance: of Difference.relative."""

    differences: list[Difference]
    tolerance: float
    who: str
    torch: str
    pictures: str

    @property
    def good(self) -> bool:
        return all(d.relative <= self.tolerance for d in self.differences)


def pictures(config: Mapping, folder: str, size: tuple[int, int]) -> tuple:
    """(some pictures [B, *size, C] as the run's evaluation sees them, their name).

    folder: pictures of one's own; "" for the held-out ones of the run, or its training
    pictures if there are none.
    """
    mesh = meshes.make(fsdp=1)
    section = dict(config["data"])
    if folder:
        view = data.parse(section["eval_view"], "data.eval_view")
        channels = config["model"]["encoder"]["channels"]
        own = f"decode_center({tuple(size)}, {max(size)}, channels={channels})"
        own += f" | normalize({tuple(view.mean)}, {tuple(view.std)})"
        section |= {"source": f"folder:{folder}", "eval_view": own, "views": (own,)}
    section |= {"on_device": False, "threads": 2, "prefetch": 1}
    section["eval_batch"] = -(-COUNT // mesh.size) * mesh.size
    try:
        sets = data.make(section, batch=1, seed=0, mesh=mesh)
        some = sets.test(COUNT) or sets.bank(COUNT)
        batches = some.sweep()
        batch = next(iter(batches))
        batches.close()
    except UsageError as error:
        if folder:
            raise
        raise UsageError(
            f"--check needs pictures, and those of the run cannot be read ({error}); "
            f"give some with --pictures=FOLDER."
        ) from error
    seen = some.augment(batch, some.resident, jax.random.key(0))["views"][0]
    seen = np.asarray(seen)[np.asarray(batch["valid"])][:COUNT]
    return resampled(seen, size), some.source.name


def resampled(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shape = (len(images), *size, images.shape[-1])
    return np.asarray(jax.image.resize(jnp.asarray(images), shape, "bilinear"))


def ours(weights: Weights, images: np.ndarray) -> dict:
    """{name: array} of everything that our network has to compare, in float32."""
    network, _ = store.network_of(weights.model)
    params, stats = store.trees(weights.arrays)

    def compute(params, stats, images):
        return network.apply(params, stats, images, train=False)[0]

    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(compute)(params, stats, images)
    found = {k: np.asarray(v) for k, v in outputs.items() if k in ROWS}
    if "map" in found:
        found["flat_map"] = found["map"]
    return {k: ROWS[k](v) for k, v in found.items()}


def measure(
    weights: Weights,
    to: str,
    file: Path,
    folder: Path,
    images: np.ndarray,
    name: str,
    reference: str,
) -> Result:
    """Compares the file with our network; UsageError if torch's side cannot be had.

    folder: an empty one for what the two processes tell each other. name: of the
    pictures. reference: a file, see torch_side.py; "" for none.
    """
    batches = [images]
    if weights.model["encoder"]["name"] == "resnet":  # any size will do, also odd ones
        h, w = images.shape[1:3]
        batches.append(resampled(images, (h + 1 + h % 2, w + 5 + w % 2)))
    for i, batch in enumerate(batches):
        planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32)
        np.save(folder / f"pictures_{i}.npy", planes)
    model = store.plain(notes(weights, to)["config"]["model"])
    stem = STEMS[model["encoder"]["stem"]] if "stem" in model["encoder"] else None
    job = {"to": to, "model": model, "file": str(file), "stem": stem}
    job |= {"batches": len(batches), "reference": reference}
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UsageError(f"--check: {lines[-1]}")
    said = json.loads((folder / "said.json").read_text())
    found = []
    for i, batch in enumerate(batches):
        with np.load(folder / f"result_{i}.npz") as theirs:
            found += compare(ours(weights, batch), dict(theirs), batch.shape[1:3])
    tolerance = TOLERANCE[model["encoder"]["name"]]
    return Result(found, tolerance, said["who"], said["torch"], name)


def compare(mine: dict, theirs: dict, size: tuple[int, int]) -> list[Difference]:
    """The differences of what torch's side put out."""
    found = []
    for name, other in theirs.items():
        here = mine[name].reshape(other.shape)
        apart = np.abs(here.astype(np.float64) - other)
        numbers = [float(x) for x in (apart.max(), apart.mean(), np.abs(here).max())]
        if not np.isfinite(numbers[0]):
            numbers[:2] = [float("inf")] * 2
        found.append(Difference(name.removeprefix("flat_"), tuple(size), *numbers))
    return found


def say(result: Result) -> list[str]:
    """Lines to print."""
    lines = [f"checked on {result.pictures} against {result.who}, {result.torch}"]
    for d in result.differences:
        lines.append(
            f"{d.name:<10} {d.size[0]} x {d.size[1]}: max {d.largest:.2e}, "
            f"mean {d.mean:.2e}, of values up to {d.top:.3g}"
        )
    return lines
