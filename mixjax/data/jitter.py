"""Random colour operations after torchvision: jitter, gray, solarize.

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

    Changes brightness, contrast and saturation by factors from U[max(0, 1 - s), 1 + s],
    where s is the argument, and hue by a shift from U[-hue, hue], in one of the 24
    orders with equal probability.
    """
    strengths = {"brightness": brightness, "contrast": contrast}
    strengths |= {"saturation": saturation, "hue": hue}
    for name, strength in strengths.items():
        limit = 0.5 if name == "hue" else float("inf")
        if not 0 <= strength <= limit:
            raise ValueError(f"{name}={strength} is not in 0 .. {limit}")
    check_probability(p)

    def op(key, image):
        order_key, draw_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (5,))  # three factors, hue, p
        ranks = jax.random.permutation(order_key, 4)
        strength = jnp.array([brightness, contrast, saturation])
        low, high = jnp.maximum(1 - strength, 0.0), 1 + strength
        factors = low + (high - low) * draws[:3]
        shift = hue * (2 * draws[3] - 1)
        jittered = apply_in_order(image, ranks, factors, shift)
        return jnp.where(draws[4] < p, jittered, image)

    return op


def apply_in_order(image: Array, ranks: Array, factors: Array, shift: Array) -> Array:
    """Changes brightness, contrast, saturation by `factors` [3] and hue by `shift`.

    ranks [4]: the position, 0..3, of each of the four operations.

    Under vmap a switch would compute all four operations at each of four positions. As
    three of them are one formula (color_ops.blend), there are three slots for blends
    before the hue and three after it. Slots that the order leaves empty have factor 1
    and change nothing, so the result is exact, and on a CPU it takes no longer than a
    fixed order.
    """

    def blend_slots(planes, positions, is_used):
        for position in positions:
            selected = (ranks[:3] == position) & is_used(position)  # [3], one at most
            factor = jnp.where(selected, factors, 1.0).prod()
            planes = color_ops.blend(planes, factor, grey=selected[2], mean=selected[1])
        return planes

    planes = color_ops.channel_planes(image)
    planes = blend_slots(planes, (0, 1, 2), lambda position: position < ranks[3])
    planes = color_ops.shift_hue(planes, shift)
    planes = blend_slots(planes, (1, 2, 3), lambda position: position > ranks[3])
    return jnp.stack(planes, axis=2)  # [H, W, C]


def gray(p: float) -> Op:
    """Replaces every channel by the luma with probability p."""
    return apply_sometimes(color_ops.grayscale, p)


def solarize(threshold: int = 128, p: float = 1.0) -> Op:
    """Inverts all levels (0..255) from `threshold` on, with probability p."""
    if not 0 <= threshold <= 256:
        raise ValueError(f"threshold={threshold} is not in 0 .. 256")
    return apply_sometimes(lambda image: color_ops.solarize(image, threshold), p)


def apply_sometimes(change, p: float) -> Op:
    """A view operation that applies change(image) with probability p."""
    check_probability(p)

    def op(key, image):
        return jnp.where(jax.random.bernoulli(key, float(p)), change(image), image)

    return op


OPS = {"jitter": jitter, "gray": gray, "solarize": solarize}
