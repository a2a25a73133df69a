"""RandAugment for fine-tuning: timm's "rand-m9-mstd0.5-inc1".

Cubuk et al., 2020, with timm's set of 15 operations, whose strength increases with the
magnitude. The arithmetic is Pillow's, on whole levels 0..255, and truncates or rounds
where Pillow does.

Under vmap every example pays for every operation. Therefore each operation is a setting
of three stages that change nothing otherwise: a table look-up of levels, a blend with
another image, and one resampling with a matrix.
"""

import jax
import jax.numpy as jnp

from mixjax.data import affine_ops, blur_ops, color_ops
from mixjax.data.color_ops import Planes
from mixjax.data.device_ops import Op, check_probability

Array = jax.Array
FILL = (124, 116, 104)  # ImageNet's mean colour, in levels
MAX_MAGNITUDE = 10.0

# The argument of each operation as a function of magnitude and sign, in the units that
# Pillow gets: degrees; bits to keep; first level to invert; levels to add to the dark
# half; factors; columns per row and rows per column; fractions of width and height.
ARGUMENTS = {
    "AutoContrast": lambda m, sign: 0.0 * m,
    "Equalize": lambda m, sign: 0.0 * m,
    "Invert": lambda m, sign: 0.0 * m,
    "Rotate": lambda m, sign: sign * 3 * m,
    "Posterize": lambda m, sign: 4 - jnp.floor(0.4 * m),
    "Solarize": lambda m, sign: 256 - jnp.floor(25.6 * m),
    "SolarizeAdd": lambda m, sign: jnp.floor(11 * m),
    "Color": lambda m, sign: blend_factor(m, sign),
    "Contrast": lambda m, sign: blend_factor(m, sign),
    "Brightness": lambda m, sign: blend_factor(m, sign),
    "Sharpness": lambda m, sign: blend_factor(m, sign),
    "ShearX": lambda m, sign: sign * 0.03 * m,
    "ShearY": lambda m, sign: sign * 0.03 * m,
    "TranslateX": lambda m, sign: sign * 0.045 * m,
    "TranslateY": lambda m, sign: sign * 0.045 * m,
}
NAMES = tuple(ARGUMENTS)


def blend_factor(magnitude, sign):
    """The factor of a blend; 1 leaves the image as it is."""
    return jnp.maximum(1 + sign * 0.09 * magnitude, 0.1)


def operation_argument(index, magnitude, sign) -> Array:
    """The argument of operation NAMES[index]; the index may be traced."""
    return jnp.stack([f(magnitude, sign) for f in ARGUMENTS.values()])[index]


def is_operation(name: str, index) -> Array:
    """Whether NAMES[index] is `name`; index -1 stands for no operation."""
    return index == NAMES.index(name)


# --- the three stages --------------------------------------------------------------


def apply_table(plane: Array, index, value) -> Array:
    """Maps one channel [H, W] through the table of a colour operation, if it is one."""
    level = jnp.arange(256.0)
    low, high = plane.min(), plane.max()
    stretched = jnp.floor((level - low) * 255 / jnp.maximum(high - low, 1.0))
    tables = {
        "AutoContrast": jnp.where(high > low, jnp.clip(stretched, 0, 255), level),
        "Equalize": color_ops.equalization_table(plane),
        "Invert": 255 - level,
        "Posterize": level - level % jnp.exp2(8 - jnp.clip(value, 0, 8)),
        "Solarize": jnp.where(level < value, level, 255 - level),
        "SolarizeAdd": jnp.where(level < 128, jnp.minimum(level + value, 255), level),
    }
    selected = jnp.array([is_operation(name, index) for name in tables])  # [6]
    # A sum, since XLA would repeat a select for every pixel.
    table = (selected[:, None] * jnp.stack(list(tables.values()))).sum(axis=0)  # [256]
    table = jnp.where(selected.any(), table, level)
    return table[plane.astype(jnp.int32)]


def apply_blend(planes: Planes, index, value) -> tuple[Planes, Array]:
    """(planes blended with the operation's other image, whether it is a blend)."""
    light = jnp.floor(color_ops.luma(planes) + 0.5)
    mean = jnp.floor(light.mean() + 0.5)
    names = ("Color", "Contrast", "Brightness", "Sharpness")
    conditions = [is_operation(name, index) for name in names]

    def blend(plane):
        soft = jnp.floor(blur_ops.smooth_plane(plane / 255) * 255 + 0.5)
        other = jnp.select(conditions, [light, mean, 0.0, soft], 0.0)
        return jnp.floor(jnp.clip(other + value * (plane - other), 0, 255))

    return tuple(map(blend, planes)), jnp.array(conditions).any()


def geometric_matrix(index, value, height: int, width: int) -> Array:
    """The matrix [6] of a geometric operation; the identity for all others."""
    matrices = {
        "Rotate": affine_ops.rotation(value, height, width),
        "ShearX": affine_ops.shearing(value, 0.0),
        "ShearY": affine_ops.shearing(0.0, value),
        "TranslateX": affine_ops.translation(value * width, 0.0),
        "TranslateY": affine_ops.translation(0.0, value * height),
    }
    conditions = [is_operation(name, index) for name in matrices]
    identity = affine_ops.translation(0.0, 0.0)
    return jnp.select(conditions, list(matrices.values()), identity)


def warp(image: Array, index, value) -> Array:
    """Resamples [H, W, C] bicubically and truncates; FILL outside the image.

    The channels stay the last axis: XLA would resample each of several planes anew.
    """
    height, width, channels = image.shape
    fill = FILL if channels == 3 else (round(color_ops.luma(FILL)),)
    fill = tuple(level / 255 for level in fill)
    matrix = geometric_matrix(index, value, height, width)
    image = affine_ops.affine(image / 255, matrix, "bicubic", fill)
    # At whole pixels the weights are exact only up to rounding; without the 1e-3,
    # truncation could lose a level.
    return jnp.floor(image * 255 + 1e-3)


def apply_operation(image: Array, index, value) -> Array:
    """Applies NAMES[index], or nothing for -1, to whole levels [H, W, C]."""
    planes = color_ops.channel_planes(image)
    mapped = (apply_table(plane, index, value) for plane in planes)
    blended, is_blend = apply_blend(planes, index, value)
    # Both start from the image: in sequence XLA would recompute the table stage for
    # each use of its result.
    planes = [jnp.where(is_blend, b, m) for b, m in zip(blended, mapped, strict=True)]
    return warp(jnp.stack(planes, axis=2), index, value)


# --- the view operation ------------------------------------------------------------


def draw_operation(
    key: Array, magnitude: float, noise: float, p: float
) -> tuple[Array, Array]:
    """(index of a random operation, its argument); index -1 with probability 1 - p."""
    index_key, use_key, noise_key, sign_key = jax.random.split(key, 4)
    index = jax.random.randint(index_key, (), 0, len(NAMES))
    drawn = magnitude + noise * jax.random.normal(noise_key)
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    value = operation_argument(index, jnp.clip(drawn, 0.0, MAX_MAGNITUDE), sign)
    return jnp.where(jax.random.bernoulli(use_key, float(p)), index, -1), value


def randaugment(
    magnitude: float = 9.0, noise: float = 0.5, ops: int = 2, p: float = 0.5
) -> Op:
    """`ops` operations out of 15, with replacement, each with probability p.

    Magnitudes are from N(magnitude, noise^2), clipped to 0..10; signs are random.
    """
    check_probability(p)
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(f"magnitude={magnitude} is not in 0 .. 10")
    if noise < 0 or ops < 1:
        raise ValueError(f"noise={noise} must be at least 0 and ops={ops} at least 1")

    def op(key, image):
        def step(image, key):
            drawn = draw_operation(key, magnitude, noise, p)
            return apply_operation(image, *drawn), None

        # A scan compiles the three stages once, whatever `ops` is.
        keys = jax.random.split(key, ops)
        return jax.lax.scan(step, color_ops.levels(image), keys)[0] / 255

    return op


OPS = {"randaugment": randaugment}
