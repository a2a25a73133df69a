"""Position tables of vision transformers: sine-cosine, relative bias, resizing."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    """Encodes positions [L] as [L, width] float64, all sines before all cosines.

    omega_k = 10000^(-k / (width / 2)), k = 0 .. width/2 - 1 (Vaswani et al., 2017).
    """
    omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = positions[:, None] * omega[None]  # [L, width/2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def codes_1d(ids: Array, width: int) -> Array:
    """Encodes integers [...] as [..., width] float32, the traceable sincos_1d."""
    # In float64 until the product, as JAX would compute the powers in float32.
    omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = ids[..., None] * omega.astype(np.float32)  # [..., width/2]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sincos_2d(grid: tuple[int, int], width: int, class_token: bool) -> np.ndarray:
    """Returns MAE's fixed position table, [(1 +) rows * columns, width] float32.

    The first half of the channels encodes the column, the second half the row, both
    counted from 0. The class token's row, if there is one, comes first and is zero.
    `width` must be a multiple of 4.
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
    fine-tuning code does. The n leading rows (class token) are kept unchanged.
    """
    lead = table.shape[0] - old[0] * old[1]
    grid = table[lead:].reshape(*old, -1)  # [rows, columns, D]
    # "CUBIC_PYTORCH" is the method with a = -0.75; plain "CUBIC" has a = -0.5.
    grid = jax.image.resize(
        grid,
        (*new, table.shape[1]),
        jax.image.ResizeMethod.CUBIC_PYTORCH,
        antialias=False,
    )
    return jnp.concatenate([table[:lead], grid.reshape(new[0] * new[1], -1)])


def relative_bias(table: Array, grid: tuple[int, int], class_token: bool) -> Array:
    """Expands a table of relative positions to the bias [heads, n, n] (query, key).

    table: [(2 r - 1)(2 c - 1) + extra, heads] for a grid of r rows and c columns, with
        a row for every offset query - key, in row-major order.
    class_token: if true, n is 1 + r c and the three extra rows are the biases of class
        to patch, patch to class and class to class, in BEiT's order; else n is r c.
    """
    (r, c), heads = grid, table.shape[1]
    offsets = table[: (2 * r - 1) * (2 * c - 1)]
    # A product with one-hot arrays, one axis at a time, instead of a gather. Its cost
    # is negligible beside the attention, and its gradient avoids a scatter, which sums
    # in no fixed order on a GPU. Precision HIGHEST makes the product exact.
    bias = jnp.einsum(
        "qki,pmj,ijh->hqpkm",
        _is_offset(r),
        _is_offset(c),
        offsets.reshape(2 * r - 1, 2 * c - 1, heads),
        precision=jax.lax.Precision.HIGHEST,
    ).reshape(heads, r * c, r * c)
    if not class_token:
        return bias
    class_rows = table[len(offsets) :, :, None, None]  # [3, heads, 1, 1]
    to_patch, to_class, class_to_class = class_rows
    to_class = jnp.broadcast_to(to_class, (heads, r * c, 1))
    to_patch = jnp.broadcast_to(to_patch, (heads, 1, r * c))
    bias = jnp.concatenate([to_class, bias], axis=2)  # [heads, L, 1 + L]
    class_row = jnp.concatenate([class_to_class, to_patch], axis=2)  # [heads, 1, 1 + L]
    return jnp.concatenate([class_row, bias], axis=1)  # [heads, 1 + L, 1 + L]


def _is_offset(n: int) -> np.ndarray:
    """Returns the one-hot offsets query - key + n - 1, [n, n, 2 n - 1] float32."""
    steps = np.arange(n)
    offsets = steps[:, None] - steps[None] + n - 1  # [n, n], from 0
    return (offsets[..., None] == np.arange(2 * n - 1)).astype(np.float32)


def resize_relative(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int]
) -> np.ndarray:
    """Resamples a relative position bias table from windows of `old` to `new` tokens.

    table: [(2 r - 1)(2 c - 1) + extra, heads]; the extra rows are kept unchanged.

    As in SimMIM's fine-tuning code, the old values are placed at 0, +-1, +-(1 + q),
    +-(1 + q + q^2), ..., and a cubic spline through them is evaluated at the integer
    offsets. Near offsets hardly change and far ones are stretched. A window that does
    not grow keeps its biases, except those of offsets that no longer occur.

    Returns a NumPy array. Raises ValueError for windows with a side of one token.
    """
    from scipy.interpolate import RectBivariateSpline  # slow to load, rarely needed

    table = np.asarray(table)
    if tuple(old) == tuple(new):
        return table
    if min(old) < 2:
        raise ValueError(f"windows of {old} tokens have no offsets to resample")
    sizes = [(2 * a - 1, 2 * b - 1) for a, b in zip(old, new, strict=True)]
    old_offsets = [_stretched(n, m) for n, m in sizes]
    new_offsets = [np.arange(m) - m // 2 for _, m in sizes]
    # A spline of order k needs k + 1 points, more than windows of two tokens have.
    kx, ky = (min(3, n - 1) for n, _ in sizes)
    (n, _), (m, _) = sizes
    values = table[: n * m].reshape(n, m, -1)  # [2 r - 1, 2 c - 1, heads]
    # s=0: through the values, without smoothing.
    columns = [
        RectBivariateSpline(*old_offsets, head, s=0, kx=kx, ky=ky)(*new_offsets).ravel()
        for head in np.moveaxis(values, 2, 0)
    ]
    resized = np.stack(columns, axis=1).astype(table.dtype)  # [offsets, heads]
    return np.concatenate([resized, table[n * m :]])


def _stretched(n: int, m: int) -> np.ndarray:
    """Places n old values among m new ones at integer offsets; n and m are odd.

    Returns float64 [n], the geometric positions of resize_relative. Bisection chooses
    q such that the outermost values are at +-(m // 2).
    """
    ratio = 1.0  # q
    if m > n:
        low, high = 1.01, 1.5  # the bounds and the tolerance of SimMIM's code
        while high - low > 1e-6:
            ratio = (low + high) / 2
            reach = sum(ratio**i for i in range(n // 2))
            low, high = (low, ratio) if reach > m // 2 else (ratio, high)
    right = np.cumsum(ratio ** np.arange(n // 2))
    return np.concatenate([-right[::-1], [0.0], right])
