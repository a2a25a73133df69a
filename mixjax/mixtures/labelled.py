"""Mixup and CutMix of pictures with labels, for supervised training.

Sources: Zhang et al., ICLR 2018; Yun et al., ICCV 2019; in timm's form, which the
fine-tuning of DeiT and MAE uses:

    x <- lam x + (1 - lam) x'    or a box of x' put into x, lam then its outside's share
    y <- lam y + (1 - lam) y'

The partner of picture i of n is n - 1 - i. lam ~ Beta(mixup, mixup), or Beta(cutmix,
cutmix) with probability `switch` where both are on. A draw is for a chunk of
consecutive pictures, the 32 of one GPU there ("batch"), for each pair, or for each
picture ("elem"). A chunk's key comes from the number of its first example, so it does
not depend on where in the batch it is. Departures: none.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.mixtures import pairs, unmix
from mixjax.sharding import sub_batches
from mixjax.state import example_keys

Array = jax.Array
MODES = ("batch", "pair", "elem")


class Draw(NamedTuple):
    """What chance decides, for one or more pictures [...]."""

    cutmix: Array  # bool: a box, else a blend
    lam: Array  # as drawn, before the box is clipped
    centre: Array  # [..., 2] int32, row and column


def make(
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    switch: float,
    mode: str,
    chunk: int,
) -> Callable:
    """(rng, images [B, H, W, C], index [B]) -> (images, lam [B], mask [B, H, W, 1]).

    mixup, cutmix: parameters of the beta laws, 0 turns one off; probability: of mixing
    at all; switch: of CutMix where both are on; chunk: see above; it divides B. mask: 1
    own, 0 the partner's. The partner's labels: see `partners`. UsageError for a value
    out of range.
    """
    check_name("method.mixture.mode", mode, MODES)
    for field, value in {"mixup": mixup, "cutmix": cutmix}.items():
        if value < 0:
            raise UsageError(f"method.mixture.{field}={value} must be 0 (off) or more.")
    for field, value in {"probability": probability, "switch": switch}.items():
        if not 0 <= value <= 1:
            raise UsageError(f"method.mixture.{field}={value} must lie in 0 .. 1.")
    if chunk < 2 or chunk % 2:
        raise UsageError(f"method.mixture.chunk={chunk} must be even, 2 at least.")

    def draw(key, size) -> Draw:
        keys = jax.random.split(key, 5)
        boxed = jax.random.uniform(keys[0]) < switch if mixup and cutmix else cutmix > 0
        blend = jax.random.beta(keys[1], mixup, mixup) if mixup else jnp.float32(1)
        cut = jax.random.beta(keys[2], cutmix, cutmix) if cutmix else jnp.float32(1)
        lam = jnp.where(boxed, cut, blend)
        lam = jnp.where(jax.random.uniform(keys[3]) < probability, lam, 1.0)
        centre = unmix.draw_centre(keys[4], *size)
        return Draw(jnp.asarray(boxed), lam, centre)

    def mixture(rng, images, index):
        check_chunk(chunk, len(images))
        count = {"batch": 1, "pair": chunk // 2, "elem": chunk}[mode]
        keys = example_keys(rng, sub_batches.split(index, len(index) // chunk)[:, 0])
        keys = jax.vmap(lambda key: jax.random.split(key, count))(keys)
        drawn = jax.vmap(jax.vmap(lambda key: draw(key, images.shape[1:3])))(keys)
        return mix(images, spread(drawn, mode, chunk), chunk)

    return mixture


def spread(drawn: Draw, mode: str, chunk: int) -> Draw:
    """Draws [G, 1], [G, chunk / 2] or [G, chunk] -> one for every picture [B]."""

    def one(x):
        if mode == "pair":
            x = jnp.concatenate([x, x[:, ::-1]], axis=1)
        return sub_batches.merge(jnp.broadcast_to(x, (len(x), chunk, *x.shape[2:])))

    return jax.tree.map(one, drawn)


def mix(images: Array, drawn: Draw, chunk: int) -> tuple[Array, Array, Array]:
    """(mixed images, lam [B], mask [B, H, W, 1]) of draws for every picture."""
    height, width = images.shape[1:3]

    def masked(one: Draw):
        edges, own = unmix.box(one.lam, one.centre, height, width, widen=False)
        box = unmix.mask_of_box(edges, height, width)
        mask = jnp.where(one.cutmix, box, one.lam)
        return jnp.where(one.cutmix, own, one.lam), mask[..., None]

    lam, mask = jax.vmap(masked)(drawn)
    mixed = mask * images + (1 - mask) * partners(images, chunk)
    return mixed.astype(images.dtype), lam, mask


def partners(x: Array, chunk: int) -> Array:
    """x [B, ...] with every chunk in reverse: what the pictures are mixed with."""
    return sub_batches.merge(pairs.split(x, len(x) // chunk)[:, ::-1])


def check_chunk(chunk: int, batch: int) -> None:
    """UsageError unless chunks fill a batch."""
    if batch % chunk:
        raise UsageError(
            f"method.mixture.chunk={chunk} does not divide a batch of {batch}."
        )


def soft(labels: Array, classes: int, smoothing: float) -> Array:
    """Labels [B] -> [B, classes]: smoothing / classes everywhere, the rest on top."""
    hot = jax.nn.one_hot(labels, classes)
    return hot * (1 - smoothing) + smoothing / classes
