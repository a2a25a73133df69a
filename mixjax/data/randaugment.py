"""RandAugment as fine-tuning uses it: timm's "rand-m9-mstd0.5-inc1".

Cubuk et al., 2020, with the set of 15 operations and the rising magnitudes of timm.
Arithmetic is Pillow's, on whole levels 0..255, which are truncated or rounded where
Pillow does so.

Under vmap every example pays for every operation, so all of them are settings of three
stages that otherwise change nothing: a table of levels, a blend with another image, and
one resampling with a matrix.
"""

import jax
import jax.numpy as jnp

from mixjax.data import affine_ops, blur_ops, color_ops
from mixjax.data.color_ops import Planes
from mixjax.data.device_ops import Op, check_probability

Array = jax.Array
FILL = (124, 116, 104)  # ImageNet's mean colour, in levels
MOST = 10.0  # the largest magnitude

# The argument of each operation, a function of magnitude and sign. What reaches Pillow:
# degrees; bits kept; first level to invert; levels added to the dark half; factors;
# columns per row and rows per column; shares of the width and the height.
ARGUMENTS = {
    "AutoContrast": lambda m, sign: 0.0 * m,
    "Equalize": lambda m, sign: 0.0 * m,
    "Invert": lambda m, sign: 0.0 * m,
    "Rotate": lambda m, sign: sign * 3 * m,
    "Posterize": lambda m, sign: 4 - jnp.floor(0.4 * m),
    "Solarize": lambda m, sign: 256 - jnp.floor(25.6 * m),
    "SolarizeAdd": lambda m, sign: jnp.floor(11 * m),
    "Color": lambda m, sign: factor(m, sign),
    "Contrast": lambda m, sign: factor(m, sign),
    "Brightness": lambda m, sign: factor(m, sign),
    "Sharpness": lambda m, sign: factor(m, sign),
    "ShearX": lambda m, sign: sign * 0.03 * m,
    "ShearY": lambda m, sign: sign * 0.03 * m,
    "TranslateX": lambda m, sign: sign * 0.045 * m,
    "TranslateY": lambda m, sign: sign * 0.045 * m,
}
NAMES = tuple(ARGUMENTS)


def factor(magnitude, sign):
    """Of a blend: 1 leaves an image as it is."""
    return jnp.maximum(1 + sign * 0.09 * magnitude, 0.1)


def argument(which, magnitude, sign) -> Array:
    """The argument of operation number `which`."""
    return jnp.stack([f(magnitude, sign) for f in ARGUMENTS.values()])[which]


def is_(name: str, which) -> Array:
    """Whether operation number `which` is `name`; no operation is number -1."""
    return which == NAMES.index(name)


# --- the three stages --------------------------------------------------------------


def looked_up(plane: Array, which, value) -> Array:
    """One channel [H, W] through the table of a colour operation."""
    level = jnp.arange(256.0)
    low, high = plane.min(), plane.max()
    stretched = jnp.floor((level - low) * 255 / jnp.maximum(high - low, 1.0))
    tables = {
        "AutoContrast": jnp.where(high > low, jnp.clip(stretched, 0, 255), level),
        "Equalize": color_ops.equalizing(plane),
        "Invert": 255 - level,
        "Posterize": level - level % jnp.exp2(8 - jnp.clip(value, 0, 8)),
        "Solarize": jnp.where(level < value, level, 255 - level),
        "SolarizeAdd": jnp.where(level < 128, jnp.minimum(level + value, 255), level),
    }
    chosen = jnp.array([is_(name, which) for name in tables])
    # A sum, since XLA would do a select again for every pixel.
    table = (chosen[:, None] * jnp.stack(list(tables.values()))).sum(axis=0)
    table = jnp.where(chosen.any(), table, level)
    return table[plane.astype(jnp.int32)]


def blended(planes: Planes, which, value) -> tuple[Planes, Array]:
    """(away from, or towards, what the operation chooses; whether it is a blend)."""
    light = jnp.floor(color_ops.luma(planes) + 0.5)
    mean = jnp.floor(light.mean() + 0.5)
    names = ("Color", "Contrast", "Brightness", "Sharpness")
    conditions = [is_(name, which) for name in names]

    def blend(plane):
        soft = jnp.floor(blur_ops.smooth_plane(plane / 255) * 255 + 0.5)
        other = jnp.select(conditions, [light, mean, 0.0, soft], 0.0)
        return jnp.floor(jnp.clip(other + value * (plane - other), 0, 255))

    return tuple(map(blend, planes)), jnp.array(conditions).any()


def matrix(which, value, height: int, width: int) -> Array:
    """Of the geometric operations, [6]; that of the others changes nothing."""
    matrices = {
        "Rotate": affine_ops.rotation(value, height, width),
        "ShearX": affine_ops.shearing(value, 0.0),
        "ShearY": affine_ops.shearing(0.0, value),
        "TranslateX": affine_ops.translation(value * width, 0.0),
        "TranslateY": affine_ops.translation(0.0, value * height),
    }
    conditions = [is_(name, which) for name in matrices]
    same = affine_ops.translation(0.0, 0.0)
    return jnp.select(conditions, list(matrices.values()), same)


def warped(image: Array, which, value) -> Array:
    """[H, W, C] resampled with a bicubic, and truncated; FILL where it does not reach.

    C stays the last axis: XLA would resample once for each of several planes.
    """
    height, width, channels = image.shape
    fill = FILL if channels == 3 else (round(color_ops.luma(FILL)),)
    fill = tuple(level / 255 for level in fill)
    places = matrix(which, value, height, width)
    image = affine_ops.affine(image / 255, places, "bicubic", fill)
    # Weights of whole pixels are exact only almost: a hair more, before truncation.
    return jnp.floor(image * 255 + 1e-3)


def change(image: Array, which, value) -> Array:
    """Whole levels [H, W, C] through operation number `which`, or -1 for none."""
    planes = color_ops.split(image)
    looked = (looked_up(plane, which, value) for plane in planes)
    blends, chosen = blended(planes, which, value)
    # Both see the image itself: XLA would do the first again for each use of it.
    planes = [jnp.where(chosen, b, x) for b, x in zip(blends, looked, strict=True)]
    return warped(jnp.stack(planes, axis=2), which, value)


# --- the view operation ------------------------------------------------------------


def draw(key: Array, magnitude: float, noise: float, p: float) -> tuple[Array, Array]:
    """(which operation, its argument); -1 with probability 1 - p."""
    which_key, use_key, noise_key, sign_key = jax.random.split(key, 4)
    which = jax.random.randint(which_key, (), 0, len(NAMES))
    drawn = magnitude + noise * jax.random.normal(noise_key)
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    value = argument(which, jnp.clip(drawn, 0.0, MOST), sign)
    return jnp.where(jax.random.bernoulli(use_key, float(p)), which, -1), value


def randaugment(
    magnitude: float = 9.0, noise: float = 0.5, ops: int = 2, p: float = 0.5
) -> Op:
    """`ops` operations out of 15, with replacement, each with probability p.

    Magnitudes are from N(magnitude, noise), cut to 0..10; signs are random.
    """
    check_probability(p)
    if not 0 <= magnitude <= MOST:
        raise ValueError(f"magnitude={magnitude} is not in 0 .. 10")
    if noise < 0 or ops < 1:
        raise ValueError(f"noise={noise} must not be negative, nor ops={ops} below 1")

    def op(key, image):
        def one(image, key):
            return change(image, *draw(key, magnitude, noise, p)), None

        keys = jax.random.split(key, ops)
        return jax.lax.scan(one, color_ops.levels(image), keys)[0] / 255

    return op


OPS = {"randaugment": randaugment}
