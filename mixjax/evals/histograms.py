"""Histograms of weights, tensor by tensor, in TensorBoard and as a picture.

They are counted where the parameters lie; only the counts come to the host. Written to
figures/histograms_<step>.png and to TensorBoard, as weights/<part>/<path>.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mixjax.errors import UsageError
from mixjax.evals import pictures
from mixjax.sharding import meshes

Array = jax.Array
ACROSS = 8  # tensors to a row of the picture
SIDES = 96, 96  # pixels of each
INK, PAPER = (50, 80, 140), (235, 235, 235)


def histogram(x: Array, bins: int) -> dict[str, Array]:
    """Counts of x [...] in equal bins from its smallest to its largest value.

    Fields are those of TensorBoard: bucket [bins] int32, bucket_limit [bins], the upper
    ends, which belong to the bin below, and min, max, sum, sum_squares. Only sums go
    over x, so that a tensor that is cut over devices stays where it is.
    """
    x = x.astype(jnp.float32)
    low, high = x.min(), x.max()
    wide = jnp.where(high > low, high - low, 1e-3 * jnp.maximum(jnp.abs(low), 1.0))
    limits = low + wide * jnp.arange(1, bins + 1) / bins
    limits = limits.at[-1].max(high)
    under = (x[..., None] <= limits).sum(axis=range(x.ndim), dtype=jnp.int32)  # [bins]
    counts = {"bucket": jnp.diff(under, prepend=0), "bucket_limit": limits}
    sums = {"sum": x.sum(), "sum_squares": jnp.square(x).sum()}
    return {"min": low, "max": high, **sums, **counts}


def counter(bins: int, mesh) -> Callable:
    """Jits params -> {path: histogram}."""

    def count(params):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {meshes.path_name(path): histogram(x, bins) for path, x in leaves}

    return jax.jit(count, out_shardings=meshes.replicated(mesh))


def plot(counts: np.ndarray) -> np.ndarray:
    """Counts [bins] as bars, uint8 [*SIDES, 3]."""
    height, width = SIDES
    bars = counts[np.arange(width) * len(counts) // width] / counts.max()
    filled = np.arange(height, 0, -1)[:, None] <= np.ceil(bars * height)
    return np.where(filled[..., None], INK, PAPER).astype(np.uint8)


def page(found: dict[str, dict]) -> Image.Image:
    """All histograms, ACROSS to a row, with the range of each below it."""
    names, rows = list(found), []
    for start in range(0, len(names), ACROSS):
        row = {name.replace("/", " "): found[name] for name in names[start:][:ACROSS]}
        bars = {name: plot(shape["bucket"])[None] for name, shape in row.items()}
        ends = {
            name: [[f"{s['min']:.3g} .. {s['max']:.3g}"]] for name, s in row.items()
        }
        rows.append(pictures.sheet(bars, ends))
    size = max(row.width for row in rows), sum(row.height for row in rows)
    whole, top = Image.new("RGB", size, "white"), 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def make(*, bins: int, mesh, workdir: Path) -> Callable:
    """The evaluator: histograms of `bins` bins of all parameters."""
    if bins < 1:
        raise UsageError(f"evals.histograms.bins={bins} must be at least 1.")
    count = counter(bins, mesh)

    def run(state, step, writer):
        found = jax.device_get(count(state.params))
        fields = {}
        for name, shape in found.items():
            num = float(shape["bucket"].sum())
            fields[f"weights/{name}"] = {k: v.tolist() for k, v in shape.items()}
            fields[f"weights/{name}"]["num"] = num
        writer.histograms(step, fields)
        pictures.publish(page(found), workdir, "histograms", step, writer)
        return {}

    return run
