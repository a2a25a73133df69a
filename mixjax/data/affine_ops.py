"""Rotation, shear and translation of one image [H, W, C] float32, after Pillow.

Each is a matrix that maps positions in the result to positions in the image, so that a
policy can select a matrix and resample only once. Positions are in pixels from the
upper left corner; centres of pixels lie at one half. Unlike Pillow, which truncates,
nothing is rounded.

Resampling gathers pixels by index. A product with separable matrices, as in
device_ops.resize_box, cannot express a rotation, and a dense one would cost H * W times
the image.
"""

import math

import jax
import jax.numpy as jnp

from mixjax.data.device_ops import linear_kernel
from mixjax.errors import check_name

Array = jax.Array


def sharp_cubic_kernel(x: Array) -> Array:
    """The cubic kernel of Keys (1981) with a = -1.

    Pillow uses it for transforms, but a = -0.5 for resizing.
    """
    x = jnp.abs(x)
    near = (x - 2) * x * x + 1  # (a + 2) x^3 - (a + 3) x^2 + 1
    far = ((5 - x) * x - 8) * x + 4  # a x^3 - 5 a x^2 + 8 a x - 4 a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


# Each kernel with its radius: it weighs 2 * radius pixels in each direction.
KERNELS = {"bilinear": (linear_kernel, 1), "bicubic": (sharp_cubic_kernel, 2)}


def affine(image: Array, matrix: Array, filter: str, fill: tuple[float, ...]) -> Array:
    """Resamples so that pixel (x, y) shows the image at (a x + b y + c, d x + e y + f).

    matrix: a..f, [6]. fill: the colour, per channel, of positions outside the image.
    Raises UsageError if `filter` is neither bilinear nor bicubic.
    """
    check_name("affine filter", filter, KERNELS)
    kernel, radius = KERNELS[filter]
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x, y = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
    source_x, source_y = a * x + b * y + c, d * x + e * y + f  # [H, W]
    inside = (source_x >= 0) & (source_x < width)
    inside &= (source_y >= 0) & (source_y < height)
    # The pixel whose centre is the last one not beyond the position.
    left, top = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
    pixels = image.reshape(height * width, channels)  # [H * W, C], for flat indices
    total = 0.0
    for i in range(1 - radius, radius + 1):
        # Clipping repeats the edge pixels, as Pillow does.
        row = jnp.clip(top + i, 0, height - 1).astype(jnp.int32)
        for j in range(1 - radius, radius + 1):
            column = jnp.clip(left + j, 0, width - 1).astype(jnp.int32)
            weight_y = kernel(source_y - 0.5 - top - i)
            weight = weight_y * kernel(source_x - 0.5 - left - j)  # [H, W]
            total += weight[:, :, None] * pixels[row * width + column]  # [H, W, C]
    return jnp.where(inside[:, :, None], jnp.clip(total, 0.0, 1.0), jnp.array(fill))


def rotation(degrees, height: int, width: int) -> Array:
    """The matrix [6] of a counter-clockwise rotation about the centre."""
    angle = jnp.asarray(degrees) * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    # The offset that keeps the centre (x, y) in place.
    offset_x, offset_y = x - cos * x + sin * y, y - sin * x - cos * y
    return jnp.array([cos, -sin, offset_x, sin, cos, offset_y])


def shearing(x, y) -> Array:
    """The matrix [6] that moves each row by x columns more to the left than the last.

    Likewise it moves each column by y rows more upwards.
    """
    return jnp.array([1.0, x, 0.0, y, 1.0, 0.0])


def translation(x, y) -> Array:
    """The matrix [6] that moves the image x columns to the left and y rows up."""
    return jnp.array([1.0, 0.0, x, 0.0, 1.0, y])


def rotate(image: Array, degrees, filter: str, fill: tuple[float, ...]) -> Array:
    """Rotates counter-clockwise about the centre; the size stays the same."""
    return affine(image, rotation(degrees, *image.shape[:2]), filter, fill)


def shear_x(image: Array, factor, filter: str, fill: tuple[float, ...]) -> Array:
    """Moves each row `factor` columns further to the left than the row above."""
    return affine(image, shearing(factor, 0.0), filter, fill)


def shear_y(image: Array, factor, filter: str, fill: tuple[float, ...]) -> Array:
    """Moves each column `factor` rows further up than the column to its left."""
    return affine(image, shearing(0.0, factor), filter, fill)


def translate_x(image: Array, fraction, filter: str, fill: tuple[float, ...]) -> Array:
    """Moves the image to the left by `fraction` of its width, without rounding."""
    return affine(image, translation(fraction * image.shape[1], 0.0), filter, fill)


def translate_y(image: Array, fraction, filter: str, fill: tuple[float, ...]) -> Array:
    """Moves the image up by `fraction` of its height, without rounding."""
    return affine(image, translation(0.0, fraction * image.shape[0]), filter, fill)
