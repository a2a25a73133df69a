"""ResizeMix: a shrunken copy of the partner in a box (Qin et al., 2020).

    tau    ~ U(smallest, largest)                                 equation 3
    box    of tau H x tau W pixels, anywhere inside the image
    m      = the image, and inside the box the whole partner, resized to it
    lam    = the share of pixels outside of the box                  equation 4

Unlike CutMix, the box always shows the whole partner, so lam says how much of each
object can be seen. One draw per group, as in Un-Mix; the paper draws once per batch.
Departures: sides are rounded to whole pixels, and lam is the exact share after that.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.mixtures import pairs, unmix
from mixjax.sharding import sub_batches
from mixjax.state import Mixed

Array = jax.Array
PAPER = {"smallest": 0.1, "largest": 0.8}


def make(
    *, smallest: float, largest: float, permutation: str, shared: bool, groups: int
) -> Callable:
    """(rng, images [B, H, W, C]) -> (Mixed,).

    smallest, largest: range of tau, the sides of the box relative to the image.
    permutation, shared, groups: see pairs.py. UsageError for a value out of range, or
    if `groups` do not divide B.
    """
    if not 0 < smallest <= largest <= 1:
        raise UsageError(
            f"mixture.smallest={smallest} and mixture.largest={largest} must satisfy "
            f"0 < smallest <= largest <= 1; the paper takes 0.1 and 0.8."
        )
    pairs.check(permutation, groups)

    def mixture(rng, images):
        height, width = images.shape[1:3]
        grouped = pairs.split(images, groups)  # [G, n, H, W, C]

        def draw(key):
            size_key, place_key, order_key = jax.random.split(key, 3)
            tau = jax.random.uniform(size_key, minval=smallest, maxval=largest)
            edges = draw_box(place_key, tau, height, width)
            return edges, pairs.draw_partner(order_key, grouped.shape[1], permutation)

        edges, partner = pairs.each_group(rng, draw, groups, shared)
        masks = jax.vmap(lambda e: unmix.mask_of_box(e, height, width))(edges)
        pasted = jax.vmap(paste)(pairs.take(grouped, partner), edges)
        mixed = sub_batches.merge(pairs.blend(grouped, masks, pasted))  # [B, H, W, C]
        lam = pairs.per_image(masks.mean(axis=(1, 2)), grouped)  # [B]
        return (Mixed(mixed.astype(images.dtype), lam, masks[..., None], partner),)

    return mixture


def draw_box(key: Array, tau: Array, height: int, width: int) -> unmix.Edges:
    """int32 (top, bottom, left, right) of a box whose sides are tau of the image's."""

    def side(key, size):
        length = jnp.clip(jnp.round(tau * size), 1, size).astype(jnp.int32)
        start = jax.random.randint(key, (), 0, size - length + 1)
        return start, start + length

    row_key, column_key = jax.random.split(key)
    return (*side(row_key, height), *side(column_key, width))


def paste(images: Array, edges: unmix.Edges) -> Array:
    """Images [n, H, W, C] shrunk to a box and put there; 0 elsewhere. float32."""
    top, bottom, left, right = edges
    height, width = images.shape[1:3]
    scale = jnp.stack([(bottom - top) / height, (right - left) / width])  # [2]
    place = jnp.stack([top, left]).astype(jnp.float32)  # [2]
    # The size of the box is not known when compiling, so the result keeps the full
    # size; antialiasing matters, since the copy is up to ten times smaller.
    return jax.image.scale_and_translate(
        images.astype(jnp.float32),
        images.shape,
        (1, 2),
        scale,
        place,
        method="linear",
        antialias=True,
    )
