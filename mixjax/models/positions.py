"""Position tables of vision transformers: the fixed sine-cosine one, and resizing."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    """[L] positions -> [L, width] float64: all sines, then all cosines.

    omega_k = 10000^(-k / (width / 2)), k = 0 .. width/2 - 1 (Vaswani et al., 2017).
    """
    omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = positions[:, None] * omega[None]  # [L, width/2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def codes_1d(ids: Array, width: int) -> Array:
    """[...] whole numbers -> [..., width] float32, as sincos_1d has them."""
    omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = ids[..., None] * omega.astype(np.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sincos_2d(grid: tuple[int, int], width: int, class_token: bool) -> np.ndarray:
    """The fixed table of MAE: [(1 +) rows * columns, width] float32.

    The first half of the channels encodes the column, the second half the row, in
    whole steps; the class token's row, if any, comes first and is zero. `width` must
    be a multiple of 4.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    table = np.concatenate(
        [sincos_1d(columns.ravel(), width // 2), sincos_1d(rows.ravel(), width // 2)],
        axis=1,
    )  # [L, width]
    if class_token:
        table = np.concatenate([np.zeros((1, width)), table])
    return table.astype(np.float32)


def resize(table: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """Resamples a position table [n + rows * columns, D] from grid `old` to `new`.

    Bicubic with a = -0.75, half-pixel centres and no antialiasing, as MAE's
    fine-tuning code does; the n leading rows (class token) stay as they are.
    """
    lead = table.shape[0] - old[0] * old[1]
    grid = table[lead:].reshape(*old, -1)  # [rows, columns, D]
    grid = jax.image.resize(
        grid,
        (*new, table.shape[1]),
        jax.image.ResizeMethod.CUBIC_PYTORCH,
        antialias=False,
    )
    return jnp.concatenate([table[:lead], grid.reshape(new[0] * new[1], -1)])
