"""Lam's mixtures: both views of a batch, each with a box cut from another image.

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training"
(sections 3.2.1 and 3.2.2) and its code (p-lam/mix-ssl): the boxes of the two views
have equal sides, those of CutMix for one drawn lam, and places of their own. Neither
the inside nor the outside of a box is ever empty.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.mixtures import pairs, unmix
from mixjax.sharding import sub_batches as sub
from mixjax.state import Array, Mixed

SMALLEST = 2.0**-20  # of a drawn lam: with 0 a box could be the whole image
Cut = tuple[Array, Array]  # the share outside a box [G], and its mask [G, H, W]


def boxes(*, gamma: float, groups: int) -> Callable:
    """(rng, height, width) -> (Cut of view 1, Cut of view 2).

    One share ~ Beta(gamma, gamma) for both views, each with a place of its own; one
    draw for each of `groups` parts of the batch.
    """
    if not gamma > 0:
        raise UsageError(f"mixture.gamma={gamma} must be above 0; the paper takes 1.")
    pairs.check_groups(groups)

    def draw_all(rng, height, width):
        def draw(key):
            share, *places = jax.random.split(key, 3)
            lam = jnp.maximum(unmix.draw_lam(share, gamma), SMALLEST)
            centres = [unmix.draw_centre(key, height, width) for key in places]
            return tuple(cut(lam, centre, height, width) for centre in centres)

        return pairs.each_group(rng, draw, groups, shared=False)

    return draw_all


def cut(lam: Array, centre: Array, height: int, width: int) -> Cut:
    """For one box: [], [H, W]; see unmix.box."""
    edges, outside = unmix.box(lam, centre, height, width, widen=True)
    return outside, unmix.mask_of_box(edges, height, width)


def mix_views(x1: Array, x2: Array, first: Cut, second: Cut) -> tuple[Mixed, Mixed]:
    """Approach 1: the box of each view shows the other view; [B, H, W, C] each."""

    def mix(outside, inside, share, mask):
        outside, inside = (pairs.split(x, len(mask)) for x in (outside, inside))
        images = sub.merge(pairs.blend(outside, mask, inside)).astype(outside.dtype)
        return Mixed(images, pairs.per_image(share, outside), mask[..., None], None)

    return mix(x1, x2, *first), mix(x2, x1, *second)


def mix_batch(x1: Array, x2: Array, first: Cut, second: Cut) -> tuple[Mixed, Mixed]:
    """Approach 2: the box of each image shows its partner; [B, H, W, C] each."""

    def mix(x, share, mask):
        n = pairs.split(x, len(mask)).shape[1]
        one = pairs.draw_partner(jax.random.key(0), n, "reverse")
        partner = jnp.broadcast_to(one, (len(mask), n))
        return pairs.mix(x, share, mask, partner, "reverse")

    return mix(x1, *first), mix(x2, *second)
