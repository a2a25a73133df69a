"""Positions and weights with which boxes sample cells, one axis at a time."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def points(start: Array, size: Array, count: int) -> Array:
    """The centres of `count` equal parts of [start, start + size]: [..., count]."""
    share = (np.arange(count, dtype=np.float32) + 0.5) / count
    return start[..., None] + size[..., None] * share


def clamp(at: Array, cells: Array | int, reach: float) -> tuple[Array, Array]:
    """(points clamped to the cell centres 0 .. cells - 1, bool which of them count).

    at: [...]; points more than `reach` beyond the outermost centres do not count.
    """
    counts = (at >= -reach) & (at <= cells - 1 + reach)
    return jnp.clip(at, 0, cells - 1), counts


def axis_weights(
    start: Array, size: Array, cells: int, *, side: int, samples: int, reach: float
) -> Array:
    """Weights [..., side, cells] float32 of each cell in each of `side` bins.

    start, size: [...], in cells, whose centres are whole numbers. A bin is the mean of
    `samples` linear interpolations; points that do not count (see clamp) give 0.
    """
    at, counts = clamp(points(start, size, side * samples), cells, reach)
    # Linear interpolation: a triangle of width 2 around the point.
    hat = jnp.maximum(0, 1 - abs(at[..., None] - jnp.arange(cells, dtype=jnp.float32)))
    hat = jnp.where(counts[..., None], hat, 0)  # [..., side samples, cells]
    return hat.reshape(*start.shape, side, samples, cells).mean(axis=-2)
