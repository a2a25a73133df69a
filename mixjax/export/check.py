"""--check: the same images through our network and through torch's with the file.

torch runs in a process of its own (torch_side.py). A difference is measured in units of
the largest value of its output, or of 1 where that is smaller: features of an untrained
residual network reach hundreds, and float32 has seven digits.
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
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.export import families
from mixjax.export import weights as store
from mixjax.export.formats import notes
from mixjax.export.weights import Weights
from mixjax.sharding import meshes

SCRIPT = Path(__file__).with_name("torch_side.py")
REFERENCES = Path(__file__).parents[2] / "tests" / "support" / "torch_models"
COUNT = 4  # images that are compared
# "flat_map" is "map" as transformers' SwinModel returns it, [B, h w, D].
COMPARED = ("tokens", "map", "flat_map", "features", "logits", "prediction")


class Difference(NamedTuple):
    """Of one output: the largest and the mean difference, and the largest value."""

    name: str
    size: tuple[int, int]  # of the images
    largest: float
    mean: float
    top: float

    @property
    def relative(self) -> float:
        return self.largest / max(1.0, self.top)


class Result(NamedTuple):
    """What --check measured.

    tolerance: of Difference.relative. network: whose class torch ran. torch: its
    version. images: their source.
    """

    differences: list[Difference]
    tolerance: float
    network: str
    torch: str
    images: str

    @property
    def good(self) -> bool:
        return all(d.relative <= self.tolerance for d in self.differences)


def default_reference(encoder: str) -> str:
    """The file of the small torch network for an encoder, "" if there is none."""
    file = REFERENCES / f"{encoder}.py"
    return str(file) if file.is_file() else ""


def pictures(config: Mapping, folder: str, size: tuple[int, int]) -> tuple:
    """(a few images [B, *size, C] as the run's evaluation sees them, their source).

    folder: of images to use instead; "" for the held-out ones of the run, or its
    training images if it has none.
    """
    mesh = meshes.make(fsdp=1)
    section = dict(config["data"])
    if folder:
        view = parse(section["eval_view"], "data.eval_view")
        channels = config["model"]["encoder"]["channels"]
        text = f"decode_center({tuple(size)}, {max(size)}, channels={channels})"
        text += f" | normalize({tuple(view.mean)}, {tuple(view.std)})"
        section |= {"source": f"folder:{folder}", "eval_view": text, "views": (text,)}
    section |= {"on_device": False, "threads": 2, "prefetch": 1}
    # A batch has to be a multiple of the devices.
    section["eval_batch"] = -(-COUNT // mesh.size) * mesh.size
    try:
        sets = data.make(section, batch=1, seed=0, mesh=mesh)
        examples = sets.test(COUNT) or sets.bank(COUNT)
        batches = examples.sweep()
        batch = next(iter(batches))
        batches.close()
    except UsageError as error:
        if folder:
            raise
        raise UsageError(
            f"--check needs images, but those of the run cannot be read ({error}); "
            f"name others with --pictures=FOLDER."
        ) from error
    views = examples.augment(batch, examples.resident, jax.random.key(0))["views"]
    images = np.asarray(views[0])[np.asarray(batch["valid"])][:COUNT]
    return resize(images, size), examples.source.name


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shape = (len(images), *size, images.shape[-1])
    return np.asarray(jax.image.resize(jnp.asarray(images), shape, "bilinear"))


def ours(weights: Weights, images: np.ndarray) -> dict:
    """{name: array} of the outputs of our network that are compared, in float32."""
    network, _ = store.network_of(weights.model)
    params, stats = store.trees(weights.arrays)

    def compute(params, stats, images):
        return network.apply(params, stats, images, train=False)[0]

    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(compute)(params, stats, images)
    outputs = {k: np.asarray(v) for k, v in outputs.items() if k in COMPARED}
    if "map" in outputs:
        last = outputs["map"]
        outputs["flat_map"] = last.reshape(len(last), -1, last.shape[-1])
    return outputs


def measure(
    weights: Weights,
    to: str,
    file: Path,
    folder: Path,
    images: np.ndarray,
    name: str,
    reference: str,
) -> Result:
    """Compares the file with our network; UsageError if torch's cannot be run.

    folder: an empty one, for files that the two processes exchange. name: of the
    images. reference: a file, see torch_side.py; "" for none.
    """
    batches = [images]
    network, _ = store.network_of(weights.model)
    if network.geometry.any_size:  # odd sizes show whether paddings agree
        h, w = images.shape[1:3]
        batches.append(resize(images, (h + 1 + h % 2, w + 5 + w % 2)))
    for i, batch in enumerate(batches):
        planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32)
        np.save(folder / f"pictures_{i}.npy", planes)  # [B, C, H, W]
    model = store.plain(notes(weights, to)["config"]["model"])
    family = families.find(model["encoder"]["name"])
    job = {"to": to, "model": model, "file": str(file), "batches": len(batches)}
    job |= {"stem": family.stem(model["encoder"]), "reference": reference}
    torch_side = run_torch_side(job, folder)
    differences = []
    for i, batch in enumerate(batches):
        with np.load(folder / f"result_{i}.npz") as theirs:
            size = batch.shape[1:3]
            differences += compare(ours(weights, batch), dict(theirs), size)
    return Result(
        differences, family.tolerance, torch_side["network"], torch_side["torch"], name
    )


def run_torch_side(job: dict, folder: Path) -> dict:
    """Runs torch_side.py; returns what it reports of itself. UsageError if it fails."""
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-P", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UsageError(f"--check: {lines[-1]}")
    return json.loads((folder / "report.json").read_text())


def compare(mine: dict, theirs: dict, size: tuple[int, int]) -> list[Difference]:
    """The differences of every output that torch's side has."""
    differences = []
    for name, other in theirs.items():
        values = mine[name].reshape(other.shape)
        apart = np.abs(values.astype(np.float64) - other)
        numbers = [float(x) for x in (apart.max(), apart.mean(), np.abs(values).max())]
        if not np.isfinite(numbers[0]):
            numbers[:2] = [float("inf")] * 2  # NaN would pass any comparison
        difference = Difference(name.removeprefix("flat_"), tuple(size), *numbers)
        differences.append(difference)
    return differences


def refuse_bad(result: Result) -> None:
    """UsageError if a difference is larger than the tolerance."""
    if result.good:
        return
    worst = max(result.differences, key=lambda d: d.relative)
    raise UsageError(
        f"--check: {worst.name} differ by {worst.largest:.3g}, with values up to "
        f"{worst.top:.3g}, where {result.tolerance:g} of that is allowed; nothing is "
        f"written."
    )


def say(result: Result) -> list[str]:
    """Lines to print."""
    lines = [f"checked on {result.images} against {result.network}, {result.torch}"]
    for d in result.differences:
        lines.append(
            f"{d.name:<10} {d.size[0]} x {d.size[1]}: max {d.largest:.2e}, "
            f"mean {d.mean:.2e}, of values up to {d.top:.3g}"
        )
    return lines
