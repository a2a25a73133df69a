"""Un-Mix: one global or one region mixture for a whole group (Mixup, CutMix).

Source: Shen et al., "Un-Mix", AAAI 2022, section 3, and its code (szq0214/Un-Mix):
with probability P the group is mixed by Mixup, lam ~ Beta(gamma, gamma) as drawn,
else by CutMix, where lam becomes the exact share of pixels outside the clipped box.
P = 0 is CutMix alone. One draw per group, as one per GPU there. Departures: none.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.mixtures import pairs

Array = jax.Array
Edges = tuple[Array, Array, Array, Array]  # top, bottom, left, right; ends exclusive


def make(
    *, probability: float, gamma: float, permutation: str, shared: bool, groups: int
) -> Callable:
    """(rng, images [B, H, W, C]) -> (Mixed,).

    probability: of Mixup; gamma: of Beta(gamma, gamma); permutation, shared, groups:
    see pairs.py. UsageError for a value out of range, or if `groups` do not divide B.
    """
    if not 0 <= probability <= 1:
        raise UsageError(f"mixture.probability={probability} must lie in 0 .. 1.")
    if not gamma > 0:
        raise UsageError(f"mixture.gamma={gamma} must be above 0; the papers take 1.")
    pairs.check(permutation, groups)

    def mixture(rng, images):
        height, width = images.shape[1:3]
        n = pairs.split(images, groups).shape[1]

        def draw(key):
            mode, ratio, place, order = jax.random.split(key, 4)
            lam = draw_lam(ratio, gamma)
            edges, outside = box(
                lam, draw_centre(place, height, width), height, width, widen=False
            )
            mixup = jax.random.uniform(mode) < probability
            mask = jnp.where(mixup, lam, mask_of_box(edges, height, width))
            partner = pairs.draw_partner(order, n, permutation)
            return jnp.where(mixup, lam, outside), mask, partner

        drawn = pairs.each_group(rng, draw, groups, shared)
        return (pairs.mix(images, *drawn, permutation),)

    return mixture


def draw_lam(key: Array, gamma: float) -> Array:
    """[] float32 ~ Beta(gamma, gamma)."""
    if gamma == 1:  # Beta(1, 1) is uniform; this needs no rejection loop
        return jax.random.uniform(key)
    return jax.random.beta(key, gamma, gamma)


def draw_centre(key: Array, height: int, width: int) -> Array:
    """[2] int32: row and column of a pixel, all equally likely."""
    return jax.random.randint(key, (2,), 0, jnp.array([height, width]))


def box(
    lam: Array, centre: Array, height: int, width: int, widen: bool
) -> tuple[Edges, Array]:
    """The box cut for a drawn lam [] around centre [2] (row, column).

    Returns int32 edges and the exact share of pixels outside the box, float32. Sides
    are sqrt(1 - lam) of the image's, cut to whole and even numbers, then clipped at
    the border; they may be 0. widen: a side of 0 becomes one pixel (mix-ssl).
    """
    cut = jnp.sqrt(1 - lam)

    def side(size, middle):
        half = (size * cut).astype(jnp.int32) // 2
        low, high = (jnp.clip(middle + h, 0, size) for h in (-half, half))
        return low, jnp.maximum(high, low + 1) if widen else high

    (top, bottom), (left, right) = side(height, centre[0]), side(width, centre[1])
    outside = height * width - (bottom - top) * (right - left)
    return (top, bottom, left, right), outside / jnp.float32(height * width)


def mask_of_box(edges: Edges, height: int, width: int) -> Array:
    """[H, W] float32: 1 outside the box (own), 0 inside (the partner's)."""
    top, bottom, left, right = edges
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return 1 - inside.astype(jnp.float32)
