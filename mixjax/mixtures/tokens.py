"""Choosing, hiding and restoring patch tokens, for one or several views of an image.

Mask polarity, here as everywhere: 1 = kept (the encoder sees it), 0 = hidden.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name

Array = jax.Array


class Masking(NamedTuple):
    """Which V of the L patches are kept, and the way back to their places."""

    shuffle: Array  # [B, L] int32: the patches in a new order, kept ones first
    restore: Array  # [B, L] int32: its inverse permutation
    kept: Array  # [B, L] float32: 1 = kept, 0 = hidden


def count_visible(length: int, mask_ratio: float) -> int:
    """V, the number of patches that stay visible: 49 of 196 at a ratio of 0.75.

    UsageError unless at least one patch is visible and one hidden.
    """
    visible = int(length * (1 - mask_ratio))  # truncated, as in the official code
    if not 0 < visible < length:
        raise UsageError(
            f"method.mask_ratio={mask_ratio} keeps {visible} of {length} patches; "
            f"it must leave at least one to see and one to predict."
        )
    return visible


def keep_smallest(noise: Array, visible: int) -> Masking:
    """Keeps the `visible` patches with the smallest noise [B, L] of each image."""
    # Sorting noise is a random order of static shape; sorting the order inverts it.
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    return Masking(shuffle, restore, (restore < visible).astype(jnp.float32))


def random_masking(keys: Array, length: int, visible: int) -> Masking:
    """MAE's masking: each image keeps `visible` of `length` patches, at random.

    keys: [B], one per image (He et al., 2022, section 3 "Masking").
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
    return keep_smallest(noise, visible)


def gather(x: Array, ids: Array) -> Array:
    """x [B, L, D], ids [B, V] -> [B, V, D], the tokens x[b, ids[b]]."""
    return jnp.take_along_axis(x, ids[:, :, None], axis=1)


@jax.custom_vjp
def take(x: Array, ids: Array, inverse: Array) -> Array:
    """Takes each token at most once: x [B, L, D], ids [B, V] -> [B, V, D].

    inverse: [B, L], the place of each token of x in the result; V or more if it was not
    taken. With it the gradient is a gather too. The gradient that JAX would derive is a
    scatter, which is slower and, on a GPU, not reproducible.
    """
    return gather(x, ids)


def _take_forward(x, ids, inverse):
    return gather(x, ids), (ids, inverse)


def _take_backward(residuals, g):
    ids, inverse = residuals
    taken = ids.shape[1]  # V
    # Tokens that were not taken read an arbitrary gradient here and 0 below.
    back = gather(g, jnp.minimum(inverse, taken - 1))  # [B, L, D]
    return jnp.where((inverse < taken)[:, :, None], back, 0), None, None


take.defvjp(_take_forward, _take_backward)


def keep(x: Array, masking: Masking, visible: int) -> Array:
    """Selects the kept patch tokens: x [B, L, D] -> [B, V, D], in shuffled order."""
    return take(x, masking.shuffle[:, :visible], masking.restore)


def unshuffle(x: Array, mask_token: Array, masking: Masking) -> Array:
    """Puts encoded tokens back in their places, the mask token everywhere else.

    x: [B, 1 + V, D], class token first; mask_token: [1, 1, D]. Returns [B, 1 + L, D].
    """
    cls, x = x[:, :1], x[:, 1:]  # [B, 1, D], [B, V, D]
    hidden = masking.restore.shape[1] - x.shape[1]
    fill = jnp.broadcast_to(mask_token, (x.shape[0], hidden, x.shape[2]))
    x = jnp.concatenate([x, fill], axis=1)  # [B, L, D], shuffled order
    return jnp.concatenate([cls, take(x, masking.restore, masking.shuffle)], axis=1)


# --- several views of an image (MI-MAE, section 4.2) ---------------------------------


def views_that_cover(mask_ratio: float) -> int:
    """The smallest number of views, at least 2, that can cover the image together."""
    # A margin, because in floating point 1 / (1 - 0.9) exceeds 10.
    return max(2, math.ceil(1 / (1 - mask_ratio) - 1e-6))


def view_masking(
    keys: Array, length: int, visible: int, views: int, mode: str
) -> Masking:
    """Which patches each of N views of an image keeps; the Masking of [B, N, L].

    keys: [B], one per image. mode:
      circular     one random order of the patches, taken as a circle; view i keeps
                   `visible` of them in a row, starting at round(i * L / N), half to
                   even. If N * visible = L, the views are disjoint and cover the image.
      independent  N random maskings.
    """
    check_name("method.mask_mode", mode, ["circular", "independent"])

    def independent(key):
        return jax.random.uniform(key, (views, length)).argsort(axis=-1)

    def circular(key):
        return circular_orders(jax.random.permutation(key, length), views)

    draw = circular if mode == "circular" else independent
    shuffle = jax.vmap(draw)(keys)  # [B, N, L]
    restore = jnp.argsort(shuffle, axis=-1)
    return Masking(shuffle, restore, (restore < visible).astype(jnp.float32))


def circular_orders(order: Array, views: int) -> Array:
    """Rotates an order of patches [L] to N equally spaced starts: [N, L]."""
    length = order.shape[0]
    starts = [round(i * length / views) for i in range(views)]
    return jnp.stack([jnp.roll(order, -start) for start in starts])


@jax.custom_vjp
def take_views(x: Array, ids: Array, inverse: Array) -> Array:
    """`take` for N views of each image: x [B, L, D], ids [B, N, V] -> [B, N, V, D].

    inverse: [B, N, L], as for `take`. Where views overlap, their gradients add up.
    """
    return _gather_views(x, ids)


def _gather_views(x, ids):
    b, n, v = ids.shape
    return gather(x, ids.reshape(b, n * v)).reshape(b, n, v, x.shape[-1])


def _views_forward(x, ids, inverse):
    return _gather_views(x, ids), (ids, inverse)


def _views_backward(residuals, g):
    ids, inverse = residuals
    taken = ids.shape[2]  # V
    back = 0
    # View by view: all at once would hold N gradients of all L tokens in memory.
    for n in range(ids.shape[1]):
        view = gather(g[:, n], jnp.minimum(inverse[:, n], taken - 1))  # [B, L, D]
        back += jnp.where((inverse[:, n] < taken)[:, :, None], view, 0)
    return back, None, None


take_views.defvjp(_views_forward, _views_backward)


def keep_views(x: Array, masking: Masking, visible: int) -> Array:
    """Selects the kept patch tokens of every view: x [B, L, D] -> [B * N, V, D].

    masking: of [B, N, L]. All views share one embedding of the patches.
    """
    kept = take_views(x, masking.shuffle[:, :, :visible], masking.restore)
    return kept.reshape(-1, visible, x.shape[-1])  # [B * N, V, D]


def each_view(masking: Masking) -> Masking:
    """Turns a Masking of [B, N, L] into one of [B * N, L]."""
    return Masking(*(x.reshape(-1, x.shape[-1]) for x in masking))


# --- cells (SimMIM, section 3.2) -----------------------------------------------------


def count_cell_side(mask_patch: int, patch: int) -> int:
    """The side of a cell in tokens, from those of a cell and of a token in pixels.

    UsageError if it is not a whole number.
    """
    if mask_patch % patch:
        raise UsageError(
            f"method.mask_patch={mask_patch} is not a multiple of "
            f"model.encoder.patch={patch}."
        )
    return mask_patch // patch


def cells(grid: tuple[int, int], cell: int) -> tuple[int, int]:
    """The rows and columns of square cells of cell x cell tokens.

    UsageError if they do not tile the grid.
    """
    rows, columns = grid
    if cell < 1 or rows % cell or columns % cell:
        fits = [n for n in range(1, min(grid) + 1) if rows % n == 0 == columns % n]
        raise UsageError(
            f"method.mask_patch makes cells of {cell} x {cell} tokens, which do not "
            f"tile {rows} x {columns} tokens; {', '.join(map(str, fits))} would."
        )
    return rows // cell, columns // cell


def spread(x: Array, shape: tuple[int, int], cell: int) -> Array:
    """Gives each token the value of its cell: [rows * columns] -> [L]."""
    return x.reshape(shape).repeat(cell, axis=0).repeat(cell, axis=1).reshape(-1)


def of_pixels(x: Array, size: tuple[int, int], patch: int) -> Array:
    """Gives each pixel the value of its token: [..., L] -> [..., H, W, 1]."""
    x = x.reshape(*x.shape[:-1], size[0] // patch, size[1] // patch)
    return x.repeat(patch, axis=-2).repeat(patch, axis=-1)[..., None]


def cell_masking(
    keys: Array, grid: tuple[int, int], cell: int, mask_ratio: float, views: int
) -> Array:
    """Hides square cells of cell x cell tokens: kept [B, N, L] float32, 1 = kept.

    keys: [B]. The first view hides ceil(ratio * cells) cells drawn at random; a second
    one hides the others, so that each view predicts what the other sees. UsageError if
    the cells do not tile the grid or nothing would be left to see or to predict.
    """
    shape = cells(grid, cell)
    count = shape[0] * shape[1]
    if views not in (1, 2):
        raise UsageError(f"method.views={views}: a mask has one complement; 1 or 2.")
    hidden = math.ceil(count * mask_ratio)  # rounded up, as in the official code
    if not 0 < hidden < count:
        raise UsageError(
            f"method.mask_ratio={mask_ratio} hides {hidden} of {count} cells; it must "
            f"leave at least one to see and one to predict."
        )

    def draw(key):
        rank = jax.random.permutation(key, count)  # [cells]
        kept = spread((rank >= hidden).astype(jnp.float32), shape, cell)
        return jnp.stack([kept, 1 - kept][:views])  # [N, L]

    return jax.vmap(draw)(keys)
