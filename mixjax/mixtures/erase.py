"""Erasing instead of mixing: the hidden part of MixMask's masks has no partner.

Source: the comparison in Vishniakov et al., "MixMask", 2022, table 4. No code was
published and the paper does not define the second image; here the two are complements:
M * x + (1 - M) * fill with lam, and (1 - M) * x + M * fill with 1 - lam. Both belong
to x, so there is no partner and no reverse order. This is erasing alone; MSCN (Jing et
al., 2022) does more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.mixtures import mixmask, pairs
from mixjax.sharding import sub_batches as sub
from mixjax.state import Mixed

Array = jax.Array
FILLS = ("zero", "noise")


def make(
    *,
    grid: int,
    kind: str,
    ratio: float | tuple[float, float],
    fill: str,
    shared: bool,
    groups: int,
) -> Callable:
    """(rng, images [B, H, W, C]) -> (Mixed, Mixed), complements of each other.

    fill: "zero", the mean of normalised images, or "noise", N(0, 1) for every pixel and
    never shared; grid, kind, ratio, shared, groups: as in mixmask.py. UsageErrors too.
    """
    draw_mask = mixmask.make_mask(grid=grid, kind=kind, ratio=ratio)
    check_name("mixture.fill", fill, FILLS)
    pairs.check_groups(groups)

    def mixture(rng, images):
        masking, filling = jax.random.split(rng)
        draw = lambda key: draw_mask(key, *images.shape[1:3])
        mask = pairs.each_group(masking, draw, groups, shared)
        blank = jnp.zeros(())
        if fill == "noise":
            shape = pairs.split(images, groups).shape[1:]
            noise = lambda key: jax.random.normal(key, shape)
            blank = pairs.each_group(filling, noise, groups, shared=False)
        return erase(images, mask, blank), erase(images, 1 - mask, blank)

    return mixture


def erase(images: Array, mask: Array, fill: Array) -> Mixed:
    """images [B, H, W, C] by mask [G, H, W], the rest of fill [G, n, H, W, C] or []."""
    grouped = pairs.split(images, len(mask))  # [G, n, H, W, C]
    erased = pairs.blend(grouped, mask, fill).astype(images.dtype)
    lam = pairs.per_image(mask.mean(axis=(1, 2)), grouped)
    return Mixed(sub.merge(erased), lam, mask[..., None], None)
