"""Attention windows: partitioning a map, shifting, and the sizes that windows fill."""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError

Array = jax.Array
Size = tuple[int, int]
FAR = -100.0  # added to the logits of tokens that only the shift brought together


def fold(x: Array, window: int, heads: int) -> Array:
    """Partitions [B, h, w, D] into windows, [B, W * heads, n, d] with n = window^2.

    Windows, in row-major order, share an axis with the heads rather than the batch. A
    bias per window is then broadcast over examples, and the batch keeps its sharding.
    """
    b, h, w, d = x.shape
    x = x.reshape(b, h // window, window, w // window, window, heads, d // heads)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6)  # [B, rows, columns, heads, window, window, d]
    return x.reshape(b, -1, window * window, d // heads)


def unfold(x: Array, size: Size, window: int) -> Array:
    """[B, W * heads, n, d] -> [B, h, w, D], the inverse of fold; size: (h, w)."""
    (b, _, _, d), (h, w) = x.shape, size
    x = x.reshape(b, h // window, w // window, -1, window, window, d)
    return x.transpose(0, 1, 4, 2, 5, 3, 6).reshape(b, h, w, -1)


def shift_bias(size: Size, window: int, shift: int) -> Array:
    """Returns [W, 1, n, n], FAR for pairs of tokens that a shift made share a window.

    Rolling the map by -shift moves its first `shift` rows and columns to the end, into
    windows with tokens from the opposite side; those must not attend to each other.
    """
    h, w = size
    rolled = 2 * (np.arange(h)[:, None] >= h - shift) + (np.arange(w) >= w - shift)
    side = rolled.reshape(h // window, window, w // window, window)
    side = side.transpose(0, 2, 1, 3).reshape(-1, 1, window * window)  # [W, 1, n]
    return jnp.where(side[..., :, None] == side[..., None, :], 0.0, FAR)


def in_map(size: Size, window: int) -> tuple[int, int]:
    """Returns the side and shift of a map's windows; a small map is one window."""
    if min(size) <= window:
        return min(size), 0
    return window, window // 2


# --- which sizes go together -----------------------------------------------------


def fill(image_size: Size, patch: int, stages: int, window: int) -> bool:
    """Whether windows tile the map of every stage, each half as large as the last."""
    unit = patch * 2 ** (stages - 1)
    if window < 1 or any(side % unit or side < unit for side in image_size):
        return False
    sides = np.array(image_size) // patch
    maps = [sides // 2**i for i in range(stages)]
    return not any((size % in_map(size, window)[0]).any() for size in maps)


def check(image_size: Size, patch: int, stages: int, window: int) -> None:
    """Raises UsageError, with the nearest sizes, unless windows tile every map."""
    size = tuple(image_size)
    if fill(size, patch, stages, window):
        return
    unit = patch * 2 ** (stages - 1)
    sides = [range(unit, 2 * side + 2 * unit * window, unit) for side in size]
    sizes: Iterable = itertools.product(*sides)
    if size[0] == size[1]:
        sizes = [(side, side) for side in sides[0]]
    far = lambda other: abs(np.subtract(other, size)).sum()
    near = (s for s in sorted(sizes, key=far) if fill(s, patch, stages, window))
    fits = [str(s) for s in itertools.islice(near, 2)]
    others = sorted(range(2, 2 * max(window, 2) + 1), key=lambda n: abs(n - window))
    others = (n for n in others if fill(size, patch, stages, n))
    fits += [f"model.encoder.window={n}" for n in itertools.islice(others, 1)]
    raise UsageError(
        f"model.encoder.image_size={size} does not divide into patches of "
        f"model.encoder.patch={patch}, halves for each of {stages - 1} further stages "
        f"and windows of model.encoder.window={window}; the nearest that fit are "
        f"{' or '.join(fits)}."
    )
