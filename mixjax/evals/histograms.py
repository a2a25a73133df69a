"""Histograms of the weights, one for each tensor.

Counting runs on the devices that hold the parameters; only counts come to the host.
Written to figures/histograms_<step>.png and to TensorBoard, as weights/<part>/<path>.
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
ACROSS = 8  # histograms in a row of the figure
SIDES = 96, 96  # height and width of each, in pixels
INK, PAPER = (50, 80, 140), (235, 235, 235)


def histogram(x: Array, bins: int) -> dict[str, Array]:
    """Counts of x [...] in equal bins from its smallest to its largest value.

    Returns TensorBoard's fields: bucket [bins] int32, bucket_limit [bins], the
    inclusive upper ends of the bins, and min, max, sum, sum_squares.
    """
    x = x.astype(jnp.float32)
    low, high = x.min(), x.max()
    # A constant tensor still gets bins of some width.
    span = jnp.where(high > low, high - low, 1e-3 * jnp.maximum(jnp.abs(low), 1.0))
    limits = low + span * jnp.arange(1, bins + 1) / bins
    limits = limits.at[-1].max(high)  # rounding must not exclude the largest value
    # Reductions alone, no scatter: a sharded tensor stays where it is.
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
    """Draws counts [bins] as bars: uint8 [*SIDES, 3]."""
    height, width = SIDES
    bars = counts[np.arange(width) * len(counts) // width] / counts.max()
    filled = np.arange(height, 0, -1)[:, None] <= np.ceil(bars * height)
    return np.where(filled[..., None], INK, PAPER).astype(np.uint8)


def page(histograms: dict[str, dict]) -> Image.Image:
    """The figure of all histograms, with the range of values below each."""
    names, rows = list(histograms), []
    for start in range(0, len(names), ACROSS):
        # Captions break at spaces.
        row = {
            name.replace("/", " "): histograms[name] for name in names[start:][:ACROSS]
        }
        bars = {name: plot(h["bucket"])[None] for name, h in row.items()}
        ranges = {
            name: [[f"{h['min']:.3g} .. {h['max']:.3g}"]] for name, h in row.items()
        }
        rows.append(pictures.sheet(bars, ranges))
    size = max(row.width for row in rows), sum(row.height for row in rows)
    whole, top = Image.new("RGB", size, "white"), 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def make(*, bins: int, mesh, workdir: Path) -> Callable:
    """The evaluator: histograms of all parameters, with `bins` bins each."""
    if bins < 1:
        raise UsageError(f"evals.histograms.bins={bins} must be at least 1.")
    count = counter(bins, mesh)

    def run(state, step, writer):
        histograms = jax.device_get(count(state.params))
        fields = {}
        for name, values in histograms.items():
            num = float(values["bucket"].sum())
            fields[f"weights/{name}"] = {k: v.tolist() for k, v in values.items()}
            fields[f"weights/{name}"]["num"] = num
        writer.histograms(step, fields)
        pictures.publish(page(histograms), workdir, "histograms", step, writer)
        return {}

    return run
