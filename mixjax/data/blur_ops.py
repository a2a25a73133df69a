"""Blur and sharpness of one image [H, W, C] float32 in 0..1.

A blur multiplies rows and columns with one band matrix each. Matrix products are fast
on every device, and the matrix includes the repeated edge pixels. Sums of shifted
images need less arithmetic, but XLA fuses them into programs that take minutes to
compile on a CPU. sigma may be traced; the static upper bound max_sigma determines the
number of weights. Pillow rounds to whole levels between passes; here only `smooth`
rounds its result.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.data import color_ops
from mixjax.data.device_ops import Op, check_probability, round_to_levels
from mixjax.data.host_ops import check_range
from mixjax.errors import check_name

Array = jax.Array
EXACT = jax.lax.Precision.HIGHEST
PASSES = 3  # box filters in Pillow's approximation of a Gaussian


def band_matrix(taps: Array, size: int) -> Array:
    """The matrix [size, size] of a convolution with taps [2 R + 1].

    Edge pixels are repeated: weights that would fall outside are added to theirs.
    """
    radius, position = len(taps) // 2, jnp.arange(size)
    sources = (jnp.clip(position + x, 0, size - 1) for x in range(-radius, radius + 1))
    hits = (source[:, None] == position for source in sources)  # [size, size] each
    return sum(tap * hit for tap, hit in zip(taps, hits, strict=True))


def filter_separably(image: Array, matrix_of: Callable[[int], Array]) -> Array:
    """Filters along the width, then along the height, with matrix_of(length)."""
    rows, columns = matrix_of(image.shape[0]), matrix_of(image.shape[1])
    image = jnp.einsum("hwc,ow->hoc", image, columns, precision=EXACT)
    return jnp.einsum("hoc,ph->poc", image, rows, precision=EXACT)


def gaussian_blur(image: Array, sigma, max_sigma: float) -> Array:
    """A sampled Gaussian, cut off at ceil(4 sigma); requires sigma <= max_sigma."""
    radius = math.ceil(4 * max_sigma)
    x = jnp.arange(-radius, radius + 1)
    taps = jnp.exp(-0.5 * (x / sigma) ** 2) * (abs(x) <= jnp.ceil(4 * sigma))
    taps = taps / taps.sum()
    return filter_separably(image, lambda size: band_matrix(taps, size))


def pillow_blur(image: Array, sigma, max_sigma: float) -> Array:
    """Pillow's GaussianBlur(sigma): three box filters; requires sigma <= max_sigma.

    A box of radius r has weight 1 up to the whole part of r, and the fraction of r one
    pixel beyond. r gives three boxes the variance of the Gaussian (Gwosdek et al.,
    2011, "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering").
    """
    radius_bound = math.floor((math.sqrt(12 * max_sigma**2 / PASSES + 1) - 1) / 2) + 1
    variance = sigma**2 / PASSES  # variances of successive filters add up
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    numerator = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + numerator / (6 * (variance - (whole + 1) ** 2))
    x = jnp.arange(-radius_bound, radius_bound + 1)
    taps = jnp.clip(radius + 1 - abs(x), 0.0, 1.0) / (2 * radius + 1)

    def three_boxes(size):
        # The power of the small matrix saves two products with the whole image.
        once = band_matrix(taps, size)
        twice = jnp.matmul(once, once, precision=EXACT)
        return jnp.matmul(twice, once, precision=EXACT)

    return filter_separably(image, three_boxes)


KINDS = {"pillow": pillow_blur, "gaussian": gaussian_blur}


def blur(
    sigma: tuple[float, float] = (0.1, 2.0), p: float = 1.0, kind: str = "pillow"
) -> Op:
    """Blurs with probability p, with sigma from U(sigma), in pixels.

    kind: "pillow" as in MoCo v2 and SwAV, among others, or "gaussian" as in SimCLR.
    They differ by up to four levels inside a picture and by more at its edges.
    """
    check_range("sigma", sigma)
    check_probability(p)
    check_name("blur kind", kind, KINDS)

    def op(key, image):
        sigma_key, use_key = jax.random.split(key)
        drawn = jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1])
        blurred = KINDS[kind](image, drawn, max_sigma=sigma[1])
        return jnp.where(jax.random.bernoulli(use_key, float(p)), blurred, image)

    return op


def smooth(image: Array) -> Array:
    """Pillow's SMOOTH filter: 3 x 3 weights of 1, in the middle 5, divided by 13.

    The outermost rows and columns stay as they are.
    """
    return color_ops.on_planes(lambda planes: map(smooth_plane, planes), image)


def smooth_plane(plane: Array) -> Array:
    """`smooth` for one channel [H, W]."""
    height, width = plane.shape
    total = jnp.pad(plane, 1)  # [H + 2, W + 2]
    total = total[:-2] + total[1:-1] + total[2:]  # [H, W + 2]
    # The box filter has weight 1 in the middle; 4 more make 5.
    total = total[:, :-2] + total[:, 1:-1] + total[:, 2:] + 4 * plane  # [H, W]
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inside, round_to_levels(total / 13), plane)


def sharpness(image: Array, factor) -> Array:
    """Blends with the smoothed image: factor > 1 sharpens, factor < 1 softens."""
    return jnp.clip(factor * image + (1 - factor) * smooth(image), 0.0, 1.0)


OPS = {"blur": blur}
