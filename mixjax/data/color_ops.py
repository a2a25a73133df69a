"""Colour operations of one image: Pillow's, in float32.

Functions of (image, ...) with image [H, W, C] in 0..1, grey or RGB; factors, shifts and
thresholds may be traced. Levels are counted in 0..255.

Departures: Pillow truncates to whole levels after every blend; here values stay as they
are between operations, which is at most one level. Hue is turned in floats, not in
Pillow's bytes of HSV (up to 5 levels, a quarter on average).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Planes = tuple[Array, ...]  # the channels apart, [H, W] each

GREY = (0.299, 0.587, 0.114)  # ITU-R 601


def split(image: Array) -> Planes:
    """[H, W, C] -> C planes [H, W]; arithmetic on whole planes is several times faster.

    ValueError if C is neither 1 nor 3.
    """
    if image.shape[2] not in (1, 3):
        raise ValueError(
            f"colours need 1 (grey) or 3 (RGB) channels, not {image.shape[2]}"
        )
    return tuple(image[:, :, c] for c in range(image.shape[2]))


def on_planes(change: Callable[[Planes], Planes], image: Array) -> Array:
    """An operation of planes as one of images."""
    return jnp.stack(tuple(change(split(image))), axis=2)


def levels(image: Array) -> Array:
    """0..1 -> whole levels 0..255 as floats, halves up."""
    return jnp.floor(jnp.clip(image, 0.0, 1.0) * 255 + 0.5)


def luma(planes: Planes) -> Array:
    """How bright each pixel is, [H, W]."""
    if len(planes) == 1:
        return planes[0]
    return sum(weight * plane for weight, plane in zip(GREY, planes, strict=True))


def blend(planes: Planes, factor, grey, mean) -> Planes:
    """factor * image + (1 - factor) * other, clipped.

    other: black, the grey image where grey = 1, its mean, in whole levels, where
    mean = 1. One formula for three operations, so that jitter can mix them by numbers.
    """
    light = luma(planes)
    other = grey * light + mean * levels(light.mean()) / 255
    return tuple(jnp.clip(factor * p + (1 - factor) * other, 0.0, 1.0) for p in planes)


def brightness(image: Array, factor) -> Array:
    """Away from black (factor > 1) or towards it."""
    return on_planes(lambda p: blend(p, factor, grey=0.0, mean=0.0), image)


def contrast(image: Array, factor) -> Array:
    """Away from the mean grey or towards it."""
    return on_planes(lambda p: blend(p, factor, grey=0.0, mean=1.0), image)


def saturation(image: Array, factor) -> Array:
    """Away from the grey image or towards it."""
    return on_planes(lambda p: blend(p, factor, grey=1.0, mean=0.0), image)


def grayscale(image: Array) -> Array:
    """Every channel becomes the luma."""
    return on_planes(lambda p: (luma(p),) * len(p), image)


def turn_hue(planes: Planes, shift) -> Planes:
    """Turns the hue by `shift` of a whole circle, towards 0 to 255ths; grey stays.

    With value v, chroma d and hue h in sixths of the circle, channel n of (5, 3, 1) is
    v - d * clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6.
    """
    if len(planes) == 1:
        return planes
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    slope = 1 / jnp.where(chroma > 0, chroma, 1.0)
    # Not value == red: the compiler may compute red anew for each use, with other
    # rounding. Where two channels are that close, both formulas agree.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * slope,
        jnp.where(green >= blue, 2 + (blue - red) * slope, 4 + (red - green) * slope),
    )
    hue = hue + 6 * (jnp.trunc(255 * shift) / 255)

    def channel(n):
        k = n + hue
        k = k - 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return channel(5), channel(3), channel(1)


def hue(image: Array, shift) -> Array:
    """Turns the hue by `shift` in -0.5..0.5 of the circle."""
    return on_planes(lambda p: turn_hue(p, shift), image)


def invert(image: Array) -> Array:
    """The negative."""
    return 1 - image


def solarize(image: Array, threshold) -> Array:
    """The negative of all levels from `threshold` on."""
    return jnp.where(image * 255 < threshold - 0.5, image, 1 - image)


def solarize_add(image: Array, amount, threshold) -> Array:
    """Adds `amount` levels to those below `threshold`."""
    brighter = jnp.minimum(image + amount / 255, 1.0)
    return jnp.where(image * 255 < threshold - 0.5, brighter, image)


def posterize(image: Array, bits) -> Array:
    """Keeps the first `bits` (0..8, whole) of each level."""
    step = jnp.left_shift(1, 8 - jnp.asarray(bits))
    return jnp.floor(levels(image) / step) * step / 255


def autocontrast(image: Array) -> Array:
    """Stretches each channel to 0..1; one of a single level stays."""
    low = image.min(axis=(0, 1))
    width = image.max(axis=(0, 1)) - low
    return jnp.where(width > 0, (image - low) / jnp.where(width > 0, width, 1.0), image)


def equalize(image: Array) -> Array:
    """Pillow's histogram equalisation, channel by channel."""
    return jax.vmap(equalize_plane, in_axes=2, out_axes=2)(levels(image)) / 255


def equalize_plane(plane: Array) -> Array:
    """Whole levels [H, W] -> whole levels [H, W].

    Looking up is a matrix product, as counting is, not a gather.
    """
    high, low = digits(plane)
    equalized = (high @ equalizing(plane).reshape(16, 16)) * low
    return equalized.sum(axis=1).reshape(plane.shape)


def digits(plane: Array) -> tuple[Array, Array]:
    """The two hexadecimal digits of whole levels [H, W] as one-hot rows, [H * W, 16].

    Their products are exact in any precision, with 0, 1 or whole numbers up to 255.
    """
    level = plane.reshape(-1).astype(jnp.int32)
    return jax.nn.one_hot(level // 16, 16), jax.nn.one_hot(level % 16, 16)


def histogram(plane: Array) -> Array:
    """How often each of 256 whole levels is in [H, W]; int32.

    A matrix product, except on a CPU, which adds one by one 30 times faster.
    """
    return jax.lax.platform_dependent(plane, cpu=one_by_one, default=by_product)


def by_product(plane: Array) -> Array:
    """`histogram` as a matrix product."""
    high, low = digits(plane)
    return (high.T @ low).reshape(256).astype(jnp.int32)


def one_by_one(plane: Array) -> Array:
    """`histogram` as a scattered sum."""
    level = plane.reshape(-1).astype(jnp.int32)
    return jnp.zeros(256, jnp.int32).at[level].add(1, mode="promise_in_bounds")


def equalizing(plane: Array) -> Array:
    """What each level becomes when whole levels [H, W] are equalised, [256]."""
    count = histogram(plane)
    below = jnp.cumsum(count) - count
    step = jnp.where(count > 0, below, 0).max() // 255  # without the brightest level
    table = (step // 2 + below) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
    return table.astype(jnp.float32)
