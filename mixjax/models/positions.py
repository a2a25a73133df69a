"""Position tables of vision transformers: sine-cosine, relative bias, and resizing."""

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


def relative_bias(table: Array, grid: tuple[int, int], class_token: bool) -> Array:
    """A relative position bias [heads, n, n] (query, key) from its table.

    table: [(2 r - 1)(2 c - 1) + extra, heads] for a grid of r rows and c columns: a row
    for every offset query - key, by rows, then columns. class_token: n is 1 + r c, and
    three more rows are for class to patch, patch to class and class to class (BEiT's
    order); else n is r c.
    """
    (r, c), heads = grid, table.shape[1]
    offsets = table[: (2 * r - 1) * (2 * c - 1)]
    # A product with zeros and ones, one axis at a time, instead of a gather: it costs
    # nothing beside the attention, and its gradient is no scatter, whose sums have no
    # fixed order on a GPU.
    bias = jnp.einsum(
        "qki,pmj,ijh->hqpkm",
        _is_offset(r),
        _is_offset(c),
        offsets.reshape(2 * r - 1, 2 * c - 1, heads),
        precision=jax.lax.Precision.HIGHEST,
    ).reshape(heads, r * c, r * c)
    if not class_token:
        return bias
    to_patch, to_class, class_bias = table[
        len(offsets) :, :, None, None
    ]  # [heads, 1, 1]
    to_class = jnp.broadcast_to(to_class, (heads, r * c, 1))
    to_patch = jnp.broadcast_to(to_patch, (heads, 1, r * c))
    bias = jnp.concatenate([to_class, bias], axis=2)  # [heads, L, 1 + L]
    first = jnp.concatenate([class_bias, to_patch], axis=2)  # [heads, 1, 1 + L]
    return jnp.concatenate([first, bias], axis=1)  # [heads, 1 + L, 1 + L]


def _is_offset(n: int) -> np.ndarray:
    """[n, n, 2 n - 1] float32, 1 where query - key is the last index' offset."""
    steps = np.arange(n)
    row = steps[:, None] - steps[None] + n - 1  # [n, n]
    return (row[..., None] == np.arange(2 * n - 1)).astype(np.float32)


def resize_relative(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int]
) -> np.ndarray:
    """Resamples a relative position bias table from windows of `old` to `new` tokens.

    table: [(2 r - 1)(2 c - 1) + extra, heads] of the host; extra rows stay as they are.
    As in SimMIM's fine-tuning code, a cubic spline through the old values, which stand
    at 0, +-1, +-(1 + q), +-(1 + q + q^2), ... and are read at whole offsets: near ones
    hardly change, far ones are stretched. A window that does not grow keeps the bias
    of every offset that it still has.
    """
    from scipy.interpolate import RectBivariateSpline  # slow to load, rarely needed

    table = np.asarray(table)
    if tuple(old) == tuple(new):
        return table
    if min(old) < 2:
        raise ValueError(f"windows of {old} tokens have no offsets to resample")
    sizes = [(2 * a - 1, 2 * b - 1) for a, b in zip(old, new, strict=True)]
    known = [_stretched(n, m) for n, m in sizes]
    wanted = [np.arange(m) - m // 2 for _, m in sizes]
    orders = dict(zip(("kx", "ky"), (min(3, n - 1) for n, _ in sizes), strict=True))
    (n, _), (m, _) = sizes
    offsets = table[: n * m].reshape(n, m, -1)  # [2 r - 1, 2 c - 1, heads]
    heads = [
        RectBivariateSpline(*known, values, s=0, **orders)(*wanted).ravel()
        for values in np.moveaxis(offsets, 2, 0)
    ]
    resized = np.stack(heads, axis=1).astype(table.dtype)
    return np.concatenate([resized, table[n * m :]])


def _stretched(n: int, m: int) -> np.ndarray:
    """Where n old values stand among m new ones at whole offsets, both odd.

    q is found by bisection so that the outermost stand at +-(m // 2), within the
    bounds of SimMIM's code.
    """
    ratio = 1.0
    if m > n:
        low, high = 1.01, 1.5
        while high - low > 1e-6:
            ratio = (low + high) / 2
            reach = sum(ratio**i for i in range(n // 2))
            low, high = (low, ratio) if reach > m // 2 else (ratio, high)
    right = np.cumsum(ratio ** np.arange(n // 2))
    return np.concatenate([-right[::-1], [0.0], right])
