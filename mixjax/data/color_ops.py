"""Pillow's colour operations for one image, in float32.

Functions of (image, ...) with image [H, W, C] in 0..1, grey or RGB. Factors, shifts and
thresholds may be traced. Levels are numbers from 0 to 255.

Differences from Pillow: it truncates to whole levels after every blend, whereas here
values are not rounded between operations, a difference of at most one level. Hue is
shifted in floats rather than in Pillow's bytes of HSV (up to 5 levels, a quarter on
average).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Planes = tuple[Array, ...]  # the separate channels, [H, W] each

GREY = (0.299, 0.587, 0.114)  # weights of R, G, B in ITU-R BT.601


def channel_planes(image: Array) -> Planes:
    """[H, W, C] -> C planes [H, W]; arithmetic on whole planes is several times faster.

    Raises ValueError if C is neither 1 nor 3.
    """
    if image.shape[2] not in (1, 3):
        raise ValueError(
            f"colours need 1 (grey) or 3 (RGB) channels, not {image.shape[2]}"
        )
    return tuple(image[:, :, c] for c in range(image.shape[2]))


def on_planes(change: Callable[[Planes], Planes], image: Array) -> Array:
    """Applies a function of planes to an image."""
    return jnp.stack(tuple(change(channel_planes(image))), axis=2)  # [H, W, C]


def levels(image: Array) -> Array:
    """0..1 -> whole levels 0..255 as floats, halves up."""
    return jnp.floor(jnp.clip(image, 0.0, 1.0) * 255 + 0.5)


def luma(planes: Planes) -> Array:
    """The weighted mean of the channels, [H, W]."""
    if len(planes) == 1:
        return planes[0]
    return sum(weight * plane for weight, plane in zip(GREY, planes, strict=True))


def blend(planes: Planes, factor, grey, mean) -> Planes:
    """factor * image + (1 - factor) * other, clipped.

    other: the grey image if grey = 1, its mean in whole levels if mean = 1, black if
    both are 0. A single formula for three operations lets jitter select them by number.
    """
    light = luma(planes)
    other = grey * light + mean * levels(light.mean()) / 255
    return tuple(jnp.clip(factor * p + (1 - factor) * other, 0.0, 1.0) for p in planes)


def brightness(image: Array, factor) -> Array:
    """Blends with black: factor > 1 brightens, factor < 1 darkens."""
    return on_planes(lambda p: blend(p, factor, grey=0.0, mean=0.0), image)


def contrast(image: Array, factor) -> Array:
    """Blends with the mean grey level: factor > 1 increases contrast."""
    return on_planes(lambda p: blend(p, factor, grey=0.0, mean=1.0), image)


def saturation(image: Array, factor) -> Array:
    """Blends with the grey image: factor > 1 increases saturation."""
    return on_planes(lambda p: blend(p, factor, grey=1.0, mean=0.0), image)


def grayscale(image: Array) -> Array:
    """Replaces every channel by the luma."""
    return on_planes(lambda p: (luma(p),) * len(p), image)


def shift_hue(planes: Planes, shift) -> Planes:
    """Rotates the hue by `shift` of a full circle; grey pixels and images stay.

    The shift is truncated to 255ths of a circle, as in torchvision, which adds it to
    the bytes of Pillow's HSV. With value v, chroma d and hue h in sixths of the circle,
    channel n of (5, 3, 1) for R, G, B is

        v - d * clip(min(k, 4 - k), 0, 1) with k = (n + h) mod 6,

    the usual conversion from HSV without its case distinction.
    """
    if len(planes) == 1:
        return planes
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    slope = 1 / jnp.where(chroma > 0, chroma, 1.0)
    # Compares channels, not value == red: the compiler may recompute red for each use
    # with different rounding. Where two channels are that close, the formulas agree.
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
    """Rotates the hue by `shift`, in -0.5..0.5 of a full circle."""
    return on_planes(lambda p: shift_hue(p, shift), image)


def invert(image: Array) -> Array:
    """The negative."""
    return 1 - image


def solarize(image: Array, threshold) -> Array:
    """Inverts all levels from `threshold` on."""
    # Half a level below, so that rounding of image * 255 does not matter.
    return jnp.where(image * 255 < threshold - 0.5, image, 1 - image)


def solarize_add(image: Array, amount, threshold) -> Array:
    """Adds `amount` levels to those below `threshold`."""
    brighter = jnp.minimum(image + amount / 255, 1.0)
    return jnp.where(image * 255 < threshold - 0.5, brighter, image)


def posterize(image: Array, bits) -> Array:
    """Keeps the highest `bits` of each level; `bits` is an integer from 0 to 8."""
    step = jnp.left_shift(1, 8 - jnp.asarray(bits))
    return jnp.floor(levels(image) / step) * step / 255


def autocontrast(image: Array) -> Array:
    """Stretches each channel to 0..1; a constant channel stays as it is."""
    low = image.min(axis=(0, 1))  # [C]
    width = image.max(axis=(0, 1)) - low
    return jnp.where(width > 0, (image - low) / jnp.where(width > 0, width, 1.0), image)


def equalize(image: Array) -> Array:
    """Pillow's histogram equalisation, applied to each channel."""
    return jax.vmap(equalize_plane, in_axes=2, out_axes=2)(levels(image)) / 255


def equalize_plane(plane: Array) -> Array:
    """Equalises whole levels [H, W].

    The table look-up, like the histogram, is a matrix product rather than a gather,
    which is slow on accelerators.
    """
    high, low = one_hot_digits(plane)
    table = equalization_table(plane).reshape(16, 16)  # [high digit, low digit]
    equalized = (high @ table) * low
    return equalized.sum(axis=1).reshape(plane.shape)


def one_hot_digits(plane: Array) -> tuple[Array, Array]:
    """The two hexadecimal digits of whole levels [H, W] as one-hot rows, [H * W, 16].

    Products with 0, 1 or integers up to 255 are exact at any precision, since bfloat16
    represents them all.
    """
    level = plane.reshape(-1).astype(jnp.int32)  # [H * W]
    return jax.nn.one_hot(level // 16, 16), jax.nn.one_hot(level % 16, 16)


def histogram(plane: Array) -> Array:
    """The count of each of the 256 whole levels in a plane [H, W]; int32 [256].

    A matrix product, except on CPUs, where a scattered sum is 30 times faster.
    """
    return jax.lax.platform_dependent(
        plane, cpu=histogram_by_scatter, default=histogram_by_product
    )


def histogram_by_product(plane: Array) -> Array:
    """`histogram` as a matrix product."""
    high, low = one_hot_digits(plane)
    return (high.T @ low).reshape(256).astype(jnp.int32)


def histogram_by_scatter(plane: Array) -> Array:
    """`histogram` as a scattered sum."""
    level = plane.reshape(-1).astype(jnp.int32)
    return jnp.zeros(256, jnp.int32).at[level].add(1, mode="promise_in_bounds")


def equalization_table(plane: Array) -> Array:
    """The new value of each level when whole levels [H, W] are equalised; [256].

    As in ImageOps.equalize: integer division, and a step that leaves out the pixels of
    the brightest level.
    """
    count = histogram(plane)
    below = jnp.cumsum(count) - count  # pixels darker than each level
    # At the brightest level that occurs, `below` counts all other pixels.
    step = jnp.where(count > 0, below, 0).max() // 255
    table = (step // 2 + below) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
    return table.astype(jnp.float32)
