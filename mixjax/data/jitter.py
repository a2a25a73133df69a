"""View operations of chance in colour: jitter, gray, solarize, as torchvision's.

Each returns op(key, image) -> image, with image [H, W, C] float32 in 0..1.
"""

import jax
import jax.numpy as jnp

from mixjax.data import color_ops
from mixjax.data.device_ops import Op, check_probability

Array = jax.Array


def jitter(
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float = 1.0,
) -> Op:
    """torchvision's ColorJitter, applied with probability p.

    Brightness, contrast and saturation by factors from U[max(0, 1 - s), 1 + s], hue by
    a shift from U[-hue, hue], in one of the 24 orders, each as likely.
    """
    strengths = {"brightness": brightness, "contrast": contrast}
    strengths |= {"saturation": saturation, "hue": hue}
    for name, value in strengths.items():
        most = 0.5 if name == "hue" else float("inf")
        if not 0 <= value <= most:
            raise ValueError(f"{name}={value} is not in 0 .. {most}")
    check_probability(p)

    def op(key, image):
        order_key, draw_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (5,))
        ranks = jax.random.permutation(order_key, 4)
        strength = jnp.array([brightness, contrast, saturation])
        low, high = jnp.maximum(1 - strength, 0.0), 1 + strength
        factors = low + (high - low) * draws[:3]
        shift = hue * (2 * draws[3] - 1)
        jittered = in_order(image, ranks, factors, shift)
        return jnp.where(draws[4] < p, jittered, image)

    return op


def in_order(image: Array, ranks: Array, factors: Array, shift: Array) -> Array:
    """Brightness, contrast and saturation by `factors` [3], hue by `shift`, in order.

    ranks [4]: at which place, 0..3, each of the four comes.

    Under vmap a switch over four operations at four places computes all sixteen. But
    three of them are one formula, so there are three places for a blend before hue and
    three after it; those that the order leaves empty have factor 1 and change nothing.
    That is exact, and on a CPU takes as long as a fixed order of the four.
    """

    def blends(planes, places, used):
        for place in places:
            mine = (ranks[:3] == place) & used(place)
            factor = jnp.where(mine, factors, 1.0).prod()
            planes = color_ops.blend(planes, factor, grey=mine[2], mean=mine[1])
        return planes

    planes = color_ops.split(image)
    planes = blends(planes, (0, 1, 2), lambda place: place < ranks[3])
    planes = color_ops.turn_hue(planes, shift)
    planes = blends(planes, (1, 2, 3), lambda place: place > ranks[3])
    return jnp.stack(planes, axis=2)


def gray(p: float) -> Op:
    """Every channel becomes the luma, with probability p."""
    return sometimes(color_ops.grayscale, p)


def solarize(threshold: int = 128, p: float = 1.0) -> Op:
    """The negative of all levels (0..255) from `threshold` on, with probability p."""
    if not 0 <= threshold <= 256:
        raise ValueError(f"threshold={threshold} is not in 0 .. 256")
    return sometimes(lambda image: color_ops.solarize(image, threshold), p)


def sometimes(change, p: float) -> Op:
    """`change`, a function of an image, with probability p."""
    check_probability(p)

    def op(key, image):
        return jnp.where(jax.random.bernoulli(key, float(p)), change(image), image)

    return op


OPS = {"jitter": jitter, "gray": gray, "solarize": solarize}
