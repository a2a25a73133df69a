"""Random erasing (Zhong et al., 2020) for fine-tuning: timm's "pixel" mode."""

import math

import jax
import jax.numpy as jnp

from mixjax.data.device_ops import Op, check_probability
from mixjax.data.host_ops import check_range

Array = jax.Array
TRIES = 10


def sample_box(key: Array, height: int, width: int, area, aspect):
    """(top, left, height, width) of a random box that is smaller than the image.

    Its fraction of the image is from U(area) and its aspect, height to width,
    log-uniform in `aspect`. Takes the first of TRIES boxes that fits; if none does,
    the box has height 0.
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    fraction = jax.random.uniform(area_key, (TRIES,), minval=area[0], maxval=area[1])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(jax.random.uniform(aspect_key, (TRIES,), minval=low, maxval=high))
    pixels = fraction * (height * width)
    h, w = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (h < height) & (w < width)  # [TRIES]
    first = jnp.argmax(fits)
    h, w = jnp.where(fits.any(), h[first], 0.0), w[first]
    top = jnp.floor(jax.random.uniform(top_key) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (width - w + 1))
    return top, left, h, w


def erasing(
    p: float = 0.25,
    area: tuple[float, float] = (0.02, 0.3333),
    aspect: tuple[float, float] = (0.3, 3.33),
) -> Op:
    """With probability p, fills one box with N(0, 1) noise.

    Belongs after `normalize`, where N(0, 1) has the scale of the pixels.
    """
    check_probability(p)
    check_range("area", area)
    check_range("aspect", aspect)

    def op(key, image):
        use_key, box_key, noise_key = jax.random.split(key, 3)
        height, width, _ = image.shape
        top, left, h, w = sample_box(box_key, height, width, area, aspect)
        # A mask instead of a slice, since the size of the box is traced.
        y, x = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)  # [H, W]
        inside &= jax.random.bernoulli(use_key, float(p))
        noise = jax.random.normal(noise_key, image.shape)
        return jnp.where(inside[:, :, None], noise, image)

    return op


OPS = {"erasing": erasing}
