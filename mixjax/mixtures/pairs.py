"""Shared by the image mixtures: groups of a batch, partners, and mixing by a mask.

Pairs are formed inside a group of n consecutive images, a sub-batch
(mixjax/sharding/sub_batches.py), which is what one GPU held in the papers. Each group
has its own draw: mode, lam, box or mask, and permutation; with `shared` all have the
same. Mask polarity: 1 = own pixel, 0 = the partner's. Sources: Un-Mix (Shen et al.,
AAAI 2022) and MixMask (Vishniakov et al., 2022), for which a mixture is
mask * x + (1 - mask) * x[partner].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.sharding import sub_batches as sub
from mixjax.state import Mixed

Array = jax.Array
PERMUTATIONS = ("reverse", "random")


def check(permutation: str, groups: int) -> None:
    """Raises UsageError for an unknown permutation or less than one group."""
    check_name("mixture.permutation", permutation, PERMUTATIONS)
    check_groups(groups)


def check_groups(groups: int) -> None:
    """Raises UsageError unless there is at least one group."""
    if groups < 1:
        raise UsageError(f"mixture.groups={groups} must be at least 1.")


def split(images: Array, groups: int) -> Array:
    """[B, ...] -> [G, n, ...]; UsageError if the groups are not equal."""
    batch = images.shape[0]
    if batch % groups:
        fits = [g for g in range(1, batch + 1) if batch % g == 0]
        near = sorted(sorted(fits, key=lambda g: abs(g - groups))[:3])
        raise UsageError(
            f"mixture.groups={groups} does not divide a batch of {batch} images; "
            f"{', '.join(map(str, near))} would."
        )
    return sub.split(images, groups)


def each_group(rng: Array, draw: Callable, groups: int, shared: bool):
    """The result of draw(key) for every group, with a leading axis [G, ...].

    Group g has the key fold_in(rng, g), whatever the number of groups; with `shared`
    there is one draw, with `rng` itself.
    """
    if shared:
        spread = lambda x: jnp.broadcast_to(x, (groups, *x.shape))
        return jax.tree.map(spread, draw(rng))
    keys = jax.vmap(lambda g: jax.random.fold_in(rng, g))(jnp.arange(groups))
    return jax.vmap(draw)(keys)


def draw_partner(key: Array, n: int, permutation: str) -> Array:
    """[n] int32, place of each image's partner in its group.

    "reverse": the first with the last (n odd: the middle one with itself); "random":
    any permutation, in which about one image meets itself.
    """
    if permutation == "reverse":
        return jnp.arange(n - 1, -1, -1, dtype=jnp.int32)
    return jax.random.permutation(key, n).astype(jnp.int32)


def mix(
    images: Array, lam: Array, mask: Array, partner: Array, permutation: str
) -> Mixed:
    """mask * x + (1 - mask) * x[partner], for every image x of a batch.

    images: [B, H, W, C]; lam: [G]; mask: [G, H, W]; partner: [G, n], as drawn for
    `permutation`. Computed in float32, returned in the images' dtype.
    """
    grouped = split(images, len(partner))  # [G, n, H, W, C]
    # A flip is a copy in reverse, and cheaper than a gather by the same indices.
    reverse = permutation == "reverse"
    other = grouped[:, ::-1] if reverse else take(grouped, partner)
    mixed = blend(grouped, mask, other).astype(images.dtype)
    return Mixed(sub.merge(mixed), per_image(lam, grouped), mask[..., None], partner)


def blend(images: Array, mask: Array, partners: Array) -> Array:
    """mask * images + (1 - mask) * partners; mask [G, H, W], both [G, n, H, W, C]."""
    share = mask[:, None, :, :, None]  # [G, 1, H, W, 1]
    return share * images + (1 - share) * partners


def per_image(lam: Array, grouped: Array) -> Array:
    """lam of every image [B], that of its group: lam [G], images [G, n, ...]."""
    return sub.merge(jnp.broadcast_to(lam[:, None], grouped.shape[:2]))


def take(x: Array, order: Array | np.ndarray) -> Array:
    """x [G, n, ...], order [G, n] -> x[g, order[g, i]], inside each group.

    An order that is in reverse, and NumPy's, is a flip: a copy, cheaper than a gather.
    """
    if isinstance(order, np.ndarray):
        if (order == np.arange(order.shape[1])[::-1]).all():
            return x[:, ::-1]

    def one(x, order):
        index = order.reshape(-1, *(1 for _ in x.shape[1:]))
        return jnp.take_along_axis(x, index, axis=0)

    return jax.vmap(one)(x, order)
