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

    cv2.setNumThreads(0)  # the pipeline already runs one picture per thread
except ImportError:
    cv2 = None

FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}
Op = Callable[[bytes | np.ndarray, np.random.Generator], np.ndarray]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be a single side; ValueError if below 1."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size={size} is not positive")
    return height, width


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Raises ValueError unless 0 < low <= high; `name` is the argument's."""
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name}={bounds} is not a range of positive numbers")


def to_array(picture: bytes | np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, channels] of a file's bytes or of an array [h, w] or [h, w, c]."""
    if isinstance(picture, bytes):
        return decoding.pixels(picture, channels)
    array = picture if picture.ndim == 3 else picture[:, :, None]  # [h, w, c]
    if array.shape[2] == channels:
        return array
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image = decoding.to_eight_bits(image).convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(*array.shape[:2], channels)


def resize(array: np.ndarray, size: tuple[int, int], filter: str, antialias: bool):
    """uint8 [h, w, c] -> uint8 [*size, c].

    antialias: use Pillow's resize, like torchvision; otherwise OpenCV's if it is
    installed. The latter reads fewer pixels when it shrinks and halves the time of a
    whole crop.
    """
    if array.shape[:2] == size:
        return np.ascontiguousarray(array)
    if antialias or cv2 is None:
        grey = array.shape[2] == 1  # Pillow wants [h, w] for one channel
        image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if grey else array))
        resized = np.asarray(image.resize(size[::-1], FILTERS[filter]))
    else:
        interpolation = cv2.INTER_CUBIC if filter == "bicubic" else cv2.INTER_LINEAR
        resized = cv2.resize(array, size[::-1], interpolation=interpolation)
    return resized.reshape(*size, array.shape[2])  # both drop a single channel


def sample_box(
    height: int,
    width: int,
    scale,
    ratio,
    rng: np.random.Generator,
    once: bool = False,
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params -> (top, left, height, width).

    Tries ten times an area fraction from U(scale) and an aspect, width to height,
    log-uniform in `ratio`, then falls back to the largest centre crop with an aspect in
    `ratio`. once: tries only once and clips height and width to the picture (linear
    probes of MAE and BYOL).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # Scalars from rng.random() and Python's math: NumPy's uniform and ufuncs take
        # several times as long for one number.
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
    """Raises ValueError unless `channels` is 1 (grey) or 3 (RGB)."""
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} is neither 1 (grey) nor 3 (RGB)")


def decode(channels: int = 3) -> Op:
    """The unchanged picture, for datasets whose pictures all have the same size."""
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

    A JPEG much larger than its crop needs is decoded at a half, a quarter or an eighth
    of its size, but the crop never gets smaller than twice `size`. once: see
    sample_box.
    """
    check_name("decode_crop filter", filter, FILTERS)
    check_range("scale", scale)
    check_range("ratio", ratio)
    check_channels(channels)
    size = pair(size)

    def op(picture, rng):
        jpeg_size = decoding.plain_jpeg(picture) if isinstance(picture, bytes) else None
        if jpeg_size is None:
            array = to_array(picture, channels)
            top, left, h, w = sample_box(*array.shape[:2], scale, ratio, rng, once)
        else:
            # The header tells the size, so the crop can be drawn before decoding.
            top, left, h, w = sample_box(*jpeg_size, scale, ratio, rng, once)
            shrink = max(min(h // (2 * size[0]), w // (2 * size[1])), 1)
            # Rounded up; (0, 0) asks for the full size.
            min_size = (-(-jpeg_size[0] // shrink), -(-jpeg_size[1] // shrink))
            min_size = min_size if shrink > 1 else (0, 0)
            array = decoding.pixels(picture, channels, min_size, plain=True)
            # The decoder scales by k / 8 and rounds up, hence the floor division.
            eighths = 8 * array.shape[0] // jpeg_size[0]
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
    """The evaluation crop: the centre of `size` after a resize of the short side.

    The short side becomes `resize_to`. Rounding is torchvision's: the long side is
    truncated, the corner of the crop rounded.
    """
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
