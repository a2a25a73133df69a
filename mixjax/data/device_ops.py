"""View operations of the accelerator: jitted functions of one image and one key.

Each takes its arguments from a view's text and returns op(key, image) -> image, with
image [H, W, C] float32 in 0..1 until `normalize`. The pipeline vmaps it over a batch,
so shapes are static and every branch is computed for every example.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.data.host_ops import check_range, pair
from mixjax.errors import check_name

Array = jax.Array
Op = Callable[[Array, Array], Array]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def cubic_kernel(x: Array) -> Array:
    """The cubic convolution kernel of Keys (1981) with a = -0.5, Pillow's bicubic."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1  # (a + 2) x^3 - (a + 3) x^2 + 1
    # a x^3 - 5 a x^2 + 8 a x - 4 a
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def linear_kernel(x: Array) -> Array:
    """The triangular kernel of bilinear resampling."""
    return jnp.maximum(1 - jnp.abs(x), 0.0)


KERNELS = {"bicubic": cubic_kernel, "bilinear": linear_kernel}


def resample_weights(
    size: int, out: int, start: Array, length: Array, filter: str
) -> Array:
    """Weights [out, size] that resize pixels start .. start + length to `out` pixels.

    Equal to cropping first and resizing with Pillow: half-pixel centres, a kernel that
    widens when shrinking, no pixels from outside the crop, rows that sum to 1. start
    and length may be traced, which slicing would not allow.
    """
    stretch = length / out
    kernel_scale = jnp.maximum(stretch, 1.0)  # antialiases, but never narrows
    centre = (jnp.arange(out) + 0.5) * stretch  # [out], in pixels of the crop
    pixel = jnp.arange(size) - start  # [size], in pixels of the crop
    distance = (pixel[None, :] + 0.5 - centre[:, None]) / kernel_scale  # [out, size]
    weights = KERNELS[filter](distance)
    weights = jnp.where((pixel >= 0) & (pixel < length), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_box(image: Array, box, size: tuple[int, int], filter: str) -> Array:
    """Crops box = (top, left, height, width) of image [H, W, C] and resizes to `size`.

    Resamples along the width first, then along the height, as Pillow does. (Recent
    versions start with the height if that is cheaper; the results differ at hard edges
    only.) The result is rounded to whole levels.
    """
    top, left, height, width = box
    columns = resample_weights(image.shape[1], size[1], left, width, filter)
    rows = resample_weights(image.shape[0], size[0], top, height, filter)
    exact = jax.lax.Precision.HIGHEST  # the default loses levels on TPUs and GPUs
    image = jnp.einsum("hwc,ow->hoc", image, columns, precision=exact)
    if filter == "bicubic":
        # Pillow rounds and clips between the passes. Clipping the cubic's overshoot
        # changes the input of the second pass noticeably.
        image = round_to_levels(image)  # [H, width, C]
    return round_to_levels(jnp.einsum("hoc,ph->poc", image, rows, precision=exact))


def round_to_levels(image: Array) -> Array:
    """Clips to 0..1 and rounds to multiples of 1/255, halves up."""
    return jnp.floor(jnp.clip(image, 0.0, 1.0) * 255 + 0.5) / 255


def sample_box(
    key: Array, height: int, width: int, scale, ratio, once: bool = False
) -> tuple[Array, Array, Array, Array]:
    """torchvision's RandomResizedCrop.get_params under jit; see host_ops.sample_box.

    Draws all ten tries at once and takes the first that fits. Returns (top, left,
    height, width), float32 scalars of integer value.
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(jax.random.uniform(aspect_key, (10,), minval=low, maxval=high))
    area = area * (height * width)
    w, h = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    if once:
        w, h = jnp.clip(w[:1], 1, width), jnp.clip(h[:1], 1, height)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)  # [10], or [1]
    first = jnp.argmax(fits)
    # The fallback, the largest centre crop, depends on static sizes only.
    centre_aspect = min(max(width / height, ratio[0]), ratio[1])
    centre_w = min(width, max(round(height * centre_aspect), 1))
    centre_h = min(height, max(round(width / centre_aspect), 1))
    w = jnp.where(fits.any(), w[first], centre_w)
    h = jnp.where(fits.any(), h[first], centre_h)
    top = jnp.floor(jax.random.uniform(top_key) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (width - w + 1))
    top = jnp.where(fits.any(), top, jnp.floor((height - h) / 2))
    left = jnp.where(fits.any(), left, jnp.floor((width - w) / 2))
    return top, left, h, w


def crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter: str = "bicubic",
    once: bool = False,
) -> Op:
    """A random crop of area fraction `scale` and aspect `ratio`, resized to `size`.

    once: see host_ops.sample_box.
    """
    check_name("crop filter", filter, KERNELS)
    check_range("scale", scale)
    check_range("ratio", ratio)
    size = pair(size)

    def op(key, image):
        box = sample_box(key, image.shape[0], image.shape[1], scale, ratio, once)
        return resize_box(image, box, size, filter)

    return op


def resize(size: int | tuple[int, int], filter: str = "bicubic") -> Op:
    """Resizes the whole image."""
    check_name("resize filter", filter, KERNELS)
    size = pair(size)
    return lambda key, image: resize_box(image, (0, 0, *image.shape[:2]), size, filter)


def check_probability(p: float) -> None:
    """Raises ValueError unless 0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"p={p} is not a probability")


def center(size: int | tuple[int, int]) -> Op:
    """The centre crop, with torchvision's rounding."""
    size = pair(size)

    def op(key, image):
        margin = image.shape[0] - size[0], image.shape[1] - size[1]
        if min(margin) < 0:
            raise ValueError(f"center {size} is larger than {image.shape[:2]}")
        top, left = round(margin[0] / 2), round(margin[1] / 2)
        return image[top : top + size[0], left : left + size[1]]

    return op


def flip(p: float = 0.5) -> Op:
    """Mirrors left and right with probability p."""
    check_probability(p)

    def op(key, image):
        return jnp.where(jax.random.bernoulli(key, float(p)), image[:, ::-1], image)

    return op


def normalize(
    mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Op:
    """(image - mean) / std per channel, by default with ImageNet's statistics."""
    if len(mean) != len(std) or min(std, default=0) <= 0:
        raise ValueError(
            f"mean={mean} and std={std} must have the same length, and std must be "
            f"positive"
        )

    def op(key, image):
        if len(mean) not in (1, image.shape[2]):
            raise ValueError(
                f"normalize has {len(mean)} means for {image.shape[2]} channels"
            )
        return (image - jnp.array(mean)) / jnp.array(std)

    return op


OPS = {
    "crop": crop,
    "resize": resize,
    "center": center,
    "flip": flip,
    "normalize": normalize,
}
