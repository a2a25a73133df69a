"""View operations of the host: from a stored picture to uint8 of a fixed size.

Each takes its arguments from a view's text and returns op(picture, rng) -> uint8
[H, W, C], where a picture is the bytes of a file or an array [h, w, c].
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from mixjax.data import decode as decoding
from mixjax.errors import check_name

try:
    import cv2

    cv2.setNumThreads(0)  # the pipeline has its own threads
except ImportError:
    cv2 = None

FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}
Op = Callable[[bytes | np.ndarray, np.random.Generator], np.ndarray]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A side, or (height, width), as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size={size} is not positive")
    return height, width


def check_range(what: str, bounds: tuple[float, float]) -> None:
    """ValueError unless `bounds` are positive and in order; `what` names them."""
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{what}={bounds} is not a range of positive numbers")


def to_array(picture: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decodes bytes; an array [h, w] or [h, w, c] gets the wanted channels."""
    if isinstance(picture, bytes):
        return decoding.pixels(picture, channels)
    array = picture if picture.ndim == 3 else picture[:, :, None]
    if array.shape[2] == channels:
        return array
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image = decoding.to_eight_bits(image).convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(*array.shape[:2], channels)


def resize(array: np.ndarray, size: tuple[int, int], filter: str, antialias: bool):
    """uint8 [h, w, c] -> uint8 [*size, c].

    antialias: Pillow's resize, which torchvision's is too; else OpenCV's, which looks
    at fewer pixels when it shrinks and takes about half the time of a whole crop.
    """
    if array.shape[:2] == size:
        return np.ascontiguousarray(array)
    if antialias or cv2 is None:
        grey = array.shape[2] == 1
        image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if grey else array))
        out = np.asarray(image.resize(size[::-1], FILTERS[filter]))
    else:
        kind = cv2.INTER_CUBIC if filter == "bicubic" else cv2.INTER_LINEAR
        out = cv2.resize(array, size[::-1], interpolation=kind)
    return out.reshape(*size, array.shape[2])


def sample_box(
    height: int,
    width: int,
    scale,
    ratio,
    rng: np.random.Generator,
    once: bool = False,
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params -> (top, left, height, width).

    Ten tries of an area fraction from U(scale) and a log-uniform aspect from `ratio`;
    then the largest centre crop whose aspect is allowed. once: a single try, whose
    height and width are cut to the picture's (linear probes of MAE and BYOL).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # Python's own numbers: NumPy's take several times as long one at a time.
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if once:
            w, h = min(max(w, 1), width), min(max(h, 1), height)
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.random() * (height - h + 1))
            return top, int(rng.random() * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(round(height * aspect), 1))
    h = min(height, max(round(width / aspect), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def check_channels(channels: int) -> None:
    """ValueError unless `channels` is grey or RGB."""
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} is neither 1 (grey) nor 3 (RGB)")


def decode(channels: int = 3) -> Op:
    """The picture as it is; for sets whose pictures all have one size."""
    check_channels(channels)
    return lambda picture, rng: to_array(picture, channels)


def decode_crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter: str = "bicubic",
    antialias: bool = True,
    channels: int = 3,
    once: bool = False,
) -> Op:
    """A random crop of area fraction `scale` and aspect `ratio`, resized to `size`.

    A JPEG much larger than its crop needs is decoded at a half, quarter or eighth,
    never below twice the wanted size. once: see sample_box.
    """
    check_name("decode_crop filter", filter, FILTERS)
    check_range("scale", scale)
    check_range("ratio", ratio)
    check_channels(channels)
    size = pair(size)

    def op(picture, rng):
        known = decoding.plain_jpeg(picture) if isinstance(picture, bytes) else None
        if known is None:
            array = to_array(picture, channels)
            top, left, h, w = sample_box(*array.shape[:2], scale, ratio, rng, once)
        else:
            top, left, h, w = sample_box(*known, scale, ratio, rng, once)
            spare = max(min(h // (2 * size[0]), w // (2 * size[1])), 1)
            enough = (-(-known[0] // spare), -(-known[1] // spare))
            enough = enough if spare > 1 else (0, 0)
            array = decoding.pixels(picture, channels, enough, plain=True)
            # A scaled JPEG is k / 8 of its size; its last row may be a part of one.
            eighths = 8 * array.shape[0] // known[0]
            top, left, h, w = (round(x * eighths / 8) for x in (top, left, h, w))
        crop = array[top : top + h, left : left + w]
        return resize(crop, size, filter, antialias)

    return op


def decode_center(
    size: int | tuple[int, int],
    resize_to: int,
    filter: str = "bicubic",
    antialias: bool = True,
    channels: int = 3,
) -> Op:
    """The evaluation crop: short side to `resize_to`, then the centre `size`."""
    check_name("decode_center filter", filter, FILTERS)
    check_channels(channels)
    size = pair(size)
    if resize_to < max(size):
        raise ValueError(f"resize_to={resize_to} is less than the crop {size}")

    def op(picture, rng):
        array = to_array(picture, channels)
        h, w = array.shape[:2]
        if h <= w:
            h, w = resize_to, int(resize_to * w / h)
        else:
            h, w = int(resize_to * h / w), resize_to
        array = resize(array, (h, w), filter, antialias)
        top, left = round((h - size[0]) / 2), round((w - size[1]) / 2)
        return np.ascontiguousarray(array[top : top + size[0], left : left + size[1]])

    return op


OPS = {"decode": decode, "decode_crop": decode_crop, "decode_center": decode_center}
