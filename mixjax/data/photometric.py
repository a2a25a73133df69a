"""The photometric distortion of semantic segmentation, as mmsegmentation has it.

A view operation of the accelerator: op(key, image) -> image, with image [H, W, C]
float32 in 0..1; padding is distorted too. Contrast is about black and saturation that
of HSV, unlike those of `jitter`.

Departures: values are not rounded to whole levels between the operations, and the hue
is turned by 255ths of the circle, not by whole steps of 2 degrees.
"""

import jax
import jax.numpy as jnp

from mixjax.data import color_ops
from mixjax.data.color_ops import Planes
from mixjax.data.device_ops import Op, check_probability
from mixjax.data.host_ops import check_range

Array = jax.Array


def photometric(
    brightness: float = 32 / 255,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: float = 0.1,
    p: float = 0.5,
) -> Op:
    """Brightness, contrast, saturation and hue, each with probability p by itself.

    brightness, hue: the most that is added, either way; hue in circles. contrast,
    saturation: ranges of the factor. A coin puts contrast before or after the other
    two.
    """
    check_range("contrast", contrast)
    check_range("saturation", saturation)
    check_probability(p)
    if brightness < 0 or not 0 <= hue <= 0.5:
        raise ValueError(f"brightness={brightness}, hue={hue} are not in 0 .. 0.5")

    def op(key, image):
        draws = jax.random.uniform(key, (9,))
        shifts = jnp.array([brightness, hue]) * (2 * draws[:2] - 1)
        low, high = jnp.array([contrast, saturation]).T
        factors = low + (high - low) * draws[2:4]
        used = draws[4:8] < p
        shifts = jnp.where(used[:2], shifts, 0.0)
        factors = jnp.where(used[2:], factors, 1.0)
        return distorted(image, shifts, factors, draws[8] < 0.5)

    return op


def distorted(image: Array, shifts: Array, factors: Array, early: Array) -> Array:
    """Brightness and hue by `shifts` [2], contrast and saturation by `factors` [2].

    0 and 1 change nothing. early: contrast comes before saturation and hue.
    """
    before = jnp.where(early, factors[0], 1.0)
    after = jnp.where(early, 1.0, factors[0])
    planes = color_ops.split(image)
    planes = tuple(jnp.clip(p + shifts[0], 0.0, 1.0) for p in planes)
    planes = tuple(jnp.clip(p * before, 0.0, 1.0) for p in planes)
    planes = saturated(planes, factors[1])
    planes = color_ops.turn_hue(planes, shifts[1])
    return jnp.stack([jnp.clip(p * after, 0.0, 1.0) for p in planes], axis=2)


def saturated(planes: Planes, factor) -> Planes:
    """The saturation of HSV times `factor`, at most 1; the value stays.

    Saturation is chroma / value, so every channel's distance to the value grows by the
    factor, until the smallest channel is 0.
    """
    if len(planes) == 1:
        return planes
    value = jnp.maximum(jnp.maximum(planes[0], planes[1]), planes[2])
    chroma = value - jnp.minimum(jnp.minimum(planes[0], planes[1]), planes[2])
    most = value / jnp.where(chroma > 0, chroma, 1.0)
    grown = jnp.where(chroma > 0, jnp.minimum(factor, most), 1.0)
    return tuple(value - (value - p) * grown for p in planes)


OPS = {"photometric": photometric}
