"""Smoothing of one image [H, W, C] float32 in 0..1: blur and sharpness.

A blur is a product with one matrix per direction, which is fast wherever products are
and holds the repeated edge pixels; sums of shifted images, which need less arithmetic,
XLA fuses into programs that take minutes to compile on a CPU. sigma may be traced; the
number of weights follows from the largest sigma. Pillow rounds to whole levels between
passes; here only the result of `smooth` is rounded.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.data import color_ops
from mixjax.data.device_ops import Op, check_probability, to_levels
from mixjax.data.host_ops import check_range
from mixjax.errors import check_name

Array = jax.Array
EXACT = jax.lax.Precision.HIGHEST
PASSES = 3  # of Pillow's box


def band(taps: Array, size: int) -> Array:
    """[size, size] that weighs neighbours by taps [2 R + 1]; edge pixels repeated."""
    reach, place = len(taps) // 2, jnp.arange(size)
    sources = (jnp.clip(place + x, 0, size - 1) for x in range(-reach, reach + 1))
    hits = (source[:, None] == place for source in sources)
    return sum(tap * hit for tap, hit in zip(taps, hits, strict=True))


def both_ways(image: Array, matrix: Callable[[int], Array]) -> Array:
    """matrix(size) times columns, then rows."""
    rows, columns = matrix(image.shape[0]), matrix(image.shape[1])
    image = jnp.einsum("hwc,ow->hoc", image, columns, precision=EXACT)
    return jnp.einsum("hoc,ph->poc", image, rows, precision=EXACT)


def gaussian_blur(image: Array, sigma, most: float) -> Array:
    """A true Gaussian, cut at ceil(4 sigma); sigma <= most, which is static."""
    reach = math.ceil(4 * most)
    x = jnp.arange(-reach, reach + 1)
    taps = jnp.exp(-0.5 * (x / sigma) ** 2) * (abs(x) <= jnp.ceil(4 * sigma))
    taps = taps / taps.sum()
    return both_ways(image, lambda size: band(taps, size))


def pillow_blur(image: Array, sigma, most: float) -> Array:
    """Pillow's GaussianBlur(sigma): three boxes in each direction; sigma <= most.

    A box of radius r weighs 1 up to its whole part and the fraction one pixel beyond,
    such that three of them have the variance of the Gaussian.
    """
    reach = math.floor((math.sqrt(12 * most**2 / PASSES + 1) - 1) / 2) + 1
    variance = sigma**2 / PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + part / (6 * (variance - (whole + 1) ** 2))
    x = jnp.arange(-reach, reach + 1)
    taps = jnp.clip(radius + 1 - abs(x), 0.0, 1.0) / (2 * radius + 1)

    def passes(size):
        once = band(taps, size)
        twice = jnp.matmul(once, once, precision=EXACT)
        return jnp.matmul(twice, once, precision=EXACT)

    return both_ways(image, passes)


KINDS = {"pillow": pillow_blur, "gaussian": gaussian_blur}


def blur(
    sigma: tuple[float, float] = (0.1, 2.0), p: float = 1.0, kind: str = "pillow"
) -> Op:
    """A blur with sigma from U(sigma) in pixels, with probability p.

    kind: "pillow" as MoCo v2, SwAV and others have it, "gaussian" as SimCLR. They
    differ by up to four levels inside a picture, by more at its edges.
    """
    check_range("sigma", sigma)
    check_probability(p)
    check_name("blur kind", kind, KINDS)

    def op(key, image):
        sigma_key, use_key = jax.random.split(key)
        drawn = jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1])
        blurred = KINDS[kind](image, drawn, most=sigma[1])
        return jnp.where(jax.random.bernoulli(use_key, float(p)), blurred, image)

    return op


def smooth(image: Array) -> Array:
    """Pillow's SMOOTH: 3 x 3 weights 1, in the middle 5, over 13; the rim stays."""
    return color_ops.on_planes(lambda planes: map(smooth_plane, planes), image)


def smooth_plane(plane: Array) -> Array:
    """`smooth` of one channel [H, W]."""
    height, width = plane.shape
    total = jnp.pad(plane, 1)
    total = total[:-2] + total[1:-1] + total[2:]
    total = total[:, :-2] + total[:, 1:-1] + total[:, 2:] + 4 * plane
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inside, to_levels(total / 13), plane)


def sharpness(image: Array, factor) -> Array:
    """Away from the smoothed image (factor > 1) or towards it."""
    return jnp.clip(factor * image + (1 - factor) * smooth(image), 0.0, 1.0)


OPS = {"blur": blur}
