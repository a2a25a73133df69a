"""Choosing, hiding and restoring patch tokens.

Mask polarity, here as everywhere: 1 = kept (the encoder sees it), 0 = hidden.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Masking(NamedTuple):
    """Which V of L patches are kept, and the way back."""

    shuffle: Array  # [B, L] int32: kept patches first; shuffle[b, j] is a patch
    restore: Array  # [B, L] int32: its inverse permutation
    kept: Array  # [B, L] float32: 1 = kept, 0 = hidden


def keep_smallest(noise: Array, visible: int) -> Masking:
    """Keeps the `visible` patches with the smallest noise [B, L] of each image."""
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
    """Takes tokens without repetition: x [B, L, D], ids [B, V] -> [B, V, D].

    inverse: [B, L], where in the result each token of x stands; V or more where it
    was not taken. With it the gradient is a gather too, where the derived one would
    be a scatter: slower, and on a GPU not reproducible.
    """
    return gather(x, ids)


def _take_forward(x, ids, inverse):
    return gather(x, ids), (ids, inverse)


def _take_backward(residuals, g):
    ids, inverse = residuals
    taken = ids.shape[1]
    back = gather(g, jnp.minimum(inverse, taken - 1))
    return jnp.where((inverse < taken)[:, :, None], back, 0), None, None


take.defvjp(_take_forward, _take_backward)


def keep(x: Array, masking: Masking, visible: int) -> Array:
    """Patch tokens x [B, L, D] -> the kept ones [B, V, D], in shuffled order."""
    return take(x, masking.shuffle[:, :visible], masking.restore)


def unshuffle(x: Array, mask_token: Array, masking: Masking) -> Array:
    """Puts encoded tokens back in their places and the mask token everywhere else.

    x: [B, 1 + V, D], class token first; mask_token: [1, 1, D]. Returns [B, 1 + L, D].
    """
    cls, x = x[:, :1], x[:, 1:]  # [B, 1, D], [B, V, D]
    hidden = masking.restore.shape[1] - x.shape[1]
    fill = jnp.broadcast_to(mask_token, (x.shape[0], hidden, x.shape[2]))
    x = jnp.concatenate([x, fill], axis=1)  # [B, L, D], shuffled order
    return jnp.concatenate([cls, take(x, masking.restore, masking.shuffle)], axis=1)
