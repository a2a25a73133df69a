"""Mixup and CutMix in chunks of consecutive images, timm's form for fine-tuning.

Sources: Zhang et al., ICLR 2018; Yun et al., ICCV 2019; as in timm, which the
fine-tuning of DeiT and MAE uses:

    x <- lam x + (1 - lam) x'    or x with a box of x', and lam the share outside it
    y <- lam y + (1 - lam) y'    the targets, in mixjax/methods/supervised.py

The partner of image i of n is n - 1 - i. lam ~ Beta(mixup, mixup), or Beta(cutmix,
cutmix) with probability `switch` where both are on. One draw serves a chunk, the 32
images of one GPU there ("batch"), each pair, or each image ("elem"). The key of a chunk
comes from the number of its first example, so a draw does not depend on where in the
batch a chunk is. Departures: none.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.mixtures import pairs, unmix
from mixjax.sharding import sub_batches
from mixjax.state import Mixed, example_keys

Array = jax.Array
MODES = ("batch", "pair", "elem")


class Draw(NamedTuple):
    """The random numbers of one or more images [...]."""

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
    """(rng, images [B, H, W, C], index [B]) -> (Mixed,), with a mask for each image.

    mixup, cutmix: parameters of the beta distributions, 0 turns one off; probability:
    of mixing at all; switch: of CutMix where both are on; mode, chunk: see above.
    UsageError for a value out of range, or if `chunk` does not divide B.
    """
    check_name("mixture.mode", mode, MODES)
    for field, value in {"mixup": mixup, "cutmix": cutmix}.items():
        if value < 0:
            raise UsageError(f"mixture.{field}={value} must be 0 (off) or more.")
    for field, value in {"probability": probability, "switch": switch}.items():
        if not 0 <= value <= 1:
            raise UsageError(f"mixture.{field}={value} must lie in 0 .. 1.")
    if chunk < 2 or chunk % 2:
        raise UsageError(f"mixture.chunk={chunk} must be even and at least 2.")

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
        # One key per chunk, [G], then one per draw, [G, count].
        keys = example_keys(rng, sub_batches.split(index, len(index) // chunk)[:, 0])
        keys = jax.vmap(lambda key: jax.random.split(key, count))(keys)
        drawn = jax.vmap(jax.vmap(lambda key: draw(key, images.shape[1:3])))(keys)
        mixed, lam, mask = mix(images, spread(drawn, mode, chunk), chunk)
        # Known before anything runs, so NumPy: pairs.take makes it a flip.
        partner = np.tile(np.arange(chunk)[::-1], (len(images) // chunk, 1))
        return (Mixed(mixed, lam, mask, partner),)

    return mixture


def spread(drawn: Draw, mode: str, chunk: int) -> Draw:
    """Draws [G, 1], [G, chunk / 2] or [G, chunk] -> one draw for every image [B]."""

    def one(x):
        if mode == "pair":
            x = jnp.concatenate([x, x[:, ::-1]], axis=1)
        return sub_batches.merge(jnp.broadcast_to(x, (len(x), chunk, *x.shape[2:])))

    return jax.tree.map(one, drawn)


def mix(images: Array, drawn: Draw, chunk: int) -> tuple[Array, Array, Array]:
    """(mixed images, lam [B], mask [B, H, W, 1]) for one draw per image."""
    height, width = images.shape[1:3]

    def masked(one: Draw):
        edges, outside = unmix.box(one.lam, one.centre, height, width, widen=False)
        box = unmix.mask_of_box(edges, height, width)
        mask = jnp.where(one.cutmix, box, one.lam)
        return jnp.where(one.cutmix, outside, one.lam), mask[..., None]

    lam, mask = jax.vmap(masked)(drawn)
    mixed = mask * images + (1 - mask) * partners(images, chunk)
    return mixed.astype(images.dtype), lam, mask


def partners(x: Array, chunk: int) -> Array:
    """x [B, ...] with every chunk in reverse: what each image is mixed with."""
    return sub_batches.merge(pairs.split(x, len(x) // chunk)[:, ::-1])


def check_chunk(chunk: int, batch: int) -> None:
    """UsageError unless chunks fill a batch."""
    if batch % chunk:
        raise UsageError(f"mixture.chunk={chunk} does not divide a batch of {batch}.")
