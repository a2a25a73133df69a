"""mmsegmentation's photometric distortion for semantic segmentation.

A view operation of the accelerator: op(key, image) -> image, with image [H, W, C]
float32 in 0..1; padding is distorted too. Unlike in `jitter`, contrast scales about
black, and saturation is that of HSV.

Differences from mmsegmentation: values are not rounded to whole levels between
operations, and hue shifts are multiples of 1/255 of a circle rather than of 2 degrees.
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
    """Brightness, contrast, saturation and hue, each with probability p independently.

    brightness, hue: the largest absolute shift, hue in circles. contrast, saturation:
    the range of the factor. A fair coin puts contrast before or after saturation and
    hue.
    """
    check_range("contrast", contrast)
    check_range("saturation", saturation)
    check_probability(p)
    if brightness < 0 or not 0 <= hue <= 0.5:
        raise ValueError(
            f"brightness={brightness} must not be negative and hue={hue} must be in "
            f"0 .. 0.5"
        )

    def op(key, image):
        # Two shifts, two factors, four decisions about use, one about the order.
        draws = jax.random.uniform(key, (9,))
        shifts = jnp.array([brightness, hue]) * (2 * draws[:2] - 1)
        low, high = jnp.array([contrast, saturation]).T
        factors = low + (high - low) * draws[2:4]
        used = draws[4:8] < p
        shifts = jnp.where(used[:2], shifts, 0.0)
        factors = jnp.where(used[2:], factors, 1.0)
        return distort(image, shifts, factors, draws[8] < 0.5)

    return op


def distort(
    image: Array, shifts: Array, factors: Array, contrast_first: Array
) -> Array:
    """Shifts brightness and hue by `shifts` [2], scales contrast and saturation.

    The latter by `factors` [2]. Shifts of 0 and factors of 1 change nothing.
    contrast_first: whether contrast comes before saturation and hue; under vmap both
    places are computed, and the unused one gets a factor of 1.
    """
    factor_before = jnp.where(contrast_first, factors[0], 1.0)
    factor_after = jnp.where(contrast_first, 1.0, factors[0])
    planes = color_ops.channel_planes(image)
    planes = tuple(jnp.clip(p + shifts[0], 0.0, 1.0) for p in planes)
    planes = tuple(jnp.clip(p * factor_before, 0.0, 1.0) for p in planes)
    planes = scale_saturation(planes, factors[1])
    planes = color_ops.shift_hue(planes, shifts[1])
    planes = [jnp.clip(p * factor_after, 0.0, 1.0) for p in planes]
    return jnp.stack(planes, axis=2)  # [H, W, C]


def scale_saturation(planes: Planes, factor) -> Planes:
    """Multiplies the saturation of HSV by `factor`, up to 1; the value stays.

    Saturation is chroma / value, so each channel's distance from the value grows by the
    factor, until the smallest channel is 0.
    """
    if len(planes) == 1:
        return planes
    value = jnp.maximum(jnp.maximum(planes[0], planes[1]), planes[2])
    chroma = value - jnp.minimum(jnp.minimum(planes[0], planes[1]), planes[2])
    largest_factor = value / jnp.where(chroma > 0, chroma, 1.0)  # saturation becomes 1
    growth = jnp.where(chroma > 0, jnp.minimum(factor, largest_factor), 1.0)
    return tuple(value - (value - p) * growth for p in planes)


OPS = {"photometric": photometric}
