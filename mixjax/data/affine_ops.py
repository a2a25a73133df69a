"""Rotation, shear and translation of one image [H, W, C] float32, as Pillow's.

Each is a matrix from the places of the result to those of the image, so a policy can
choose among matrices by numbers and resample once. Places are counted in pixels from
the upper left corner, centres at one half. Nothing is rounded (Pillow truncates).

Resampling gathers pixels inside the image: with any matrix each pixel has another
place, which no matrix product does for less than H * W times the image.
"""

import math

import jax
import jax.numpy as jnp

from mixjax.data.device_ops import linear_kernel
from mixjax.errors import check_name

Array = jax.Array


def sharp_cubic_kernel(x: Array) -> Array:
    """Keys' cubic with a = -1: Pillow's for transforms (for resizing -0.5)."""
    x = jnp.abs(x)
    near = (x - 2) * x * x + 1
    far = ((5 - x) * x - 8) * x + 4
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


KERNELS = {"bilinear": (linear_kernel, 1), "bicubic": (sharp_cubic_kernel, 2)}


def affine(image: Array, matrix: Array, filter: str, fill: tuple[float, ...]) -> Array:
    """The pixel at (x, y) is the image at (a x + b y + c, d x + e y + f).

    matrix: a..f, [6]. fill: the colour, per channel, where that lies outside.
    UsageError if `filter` is neither bilinear nor bicubic.
    """
    check_name("affine filter", filter, KERNELS)
    kernel, reach = KERNELS[filter]
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x, y = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
    at_x, at_y = a * x + b * y + c, d * x + e * y + f  # [H, W]
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    left, top = jnp.floor(at_x - 0.5), jnp.floor(at_y - 0.5)
    pixels = image.reshape(height * width, channels)
    total = 0.0
    for i in range(1 - reach, reach + 1):
        row = jnp.clip(top + i, 0, height - 1).astype(jnp.int32)
        for j in range(1 - reach, reach + 1):
            column = jnp.clip(left + j, 0, width - 1).astype(jnp.int32)
            weight = kernel(at_y - 0.5 - top - i) * kernel(at_x - 0.5 - left - j)
            total += weight[:, :, None] * pixels[row * width + column]
    return jnp.where(inside[:, :, None], jnp.clip(total, 0.0, 1.0), jnp.array(fill))


def rotation(degrees, height: int, width: int) -> Array:
    """Counter-clockwise about the middle, [6]."""
    angle = jnp.asarray(degrees) * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    across, down = x - cos * x + sin * y, y - sin * x - cos * y
    return jnp.array([cos, -sin, across, sin, cos, down])


def shearing(x, y) -> Array:
    """x: columns to the left per row further down; y: rows up per column, [6]."""
    return jnp.array([1.0, x, 0.0, y, 1.0, 0.0])


def translation(x, y) -> Array:
    """By x columns to the left and y rows up, [6]."""
    return jnp.array([1.0, 0.0, x, 0.0, 1.0, y])


def rotate(image: Array, degrees, filter: str, fill: tuple[float, ...]) -> Array:
    """Counter-clockwise about the middle; the size stays."""
    return affine(image, rotation(degrees, *image.shape[:2]), filter, fill)


def shear_x(image: Array, factor, filter: str, fill: tuple[float, ...]) -> Array:
    """Each row `factor` columns further to the left than the one above."""
    return affine(image, shearing(factor, 0.0), filter, fill)


def shear_y(image: Array, factor, filter: str, fill: tuple[float, ...]) -> Array:
    """Each column `factor` rows further up than the one before."""
    return affine(image, shearing(0.0, factor), filter, fill)


def translate_x(image: Array, fraction, filter: str, fill: tuple[float, ...]) -> Array:
    """To the left by `fraction` of the width, not rounded."""
    return affine(image, translation(fraction * image.shape[1], 0.0), filter, fill)


def translate_y(image: Array, fraction, filter: str, fill: tuple[float, ...]) -> Array:
    """Up by `fraction` of the height, not rounded."""
    return affine(image, translation(0.0, fraction * image.shape[0]), filter, fill)
