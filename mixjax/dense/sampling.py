"""Where boxes sample a row of cells, and with what weights: one axis at a time."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def points(start: Array, size: Array, count: int) -> Array:
    """Centres of `count` equal parts of [start, start + size]: [..., count] float32."""
    share = (np.arange(count, dtype=np.float32) + 0.5) / count
    return start[..., None] + size[..., None] * share


def held(at: Array, cells: Array | int, reach: float) -> tuple[Array, Array]:
    """Points clamped to the centres 0 .. cells - 1, and which count at all (bool).

    at: [...]; those further than `reach` beyond the outermost centres do not count.
    """
    counts = (at >= -reach) & (at <= cells - 1 + reach)
    return jnp.clip(at, 0, cells - 1), counts


def axis_weights(
    start: Array, size: Array, cells: int, *, side: int, samples: int, reach: float
) -> Array:
    """Weights [..., side, cells] float32 of each cell in each of `side` bins.

    start, size: [...], in cells, whose centres are whole numbers. A bin is the mean of
    `samples` linear interpolations; points that do not count (see held) give 0.
    """
    at, counts = held(points(start, size, side * samples), cells, reach)
    hat = jnp.maximum(0, 1 - abs(at[..., None] - jnp.arange(cells, dtype=jnp.float32)))
    hat = jnp.where(counts[..., None], hat, 0)  # [..., side samples, cells]
    return hat.reshape(*start.shape, side, samples, cells).mean(axis=-2)
