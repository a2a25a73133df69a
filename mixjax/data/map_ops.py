"""View operations of label maps, after mmsegmentation.

They return what scene_ops describes. Pictures are resized with Pillow's bilinear
filter, which antialiases when it shrinks, and labels to the nearest, both with
half-pixel centres; OpenCV, which mmsegmentation uses, does not antialias.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from mixjax.data import host_ops
from mixjax.data import scene_moves as moves
from mixjax.data.host_ops import check_range, pair
from mixjax.data.scenes import IGNORED, Map

REDRAWS = 10  # of a window that one class dominates, as in mmsegmentation


def check_sides(shortest: int, longest: int) -> None:
    """Raises ValueError unless 1 <= shortest <= longest."""
    if not 1 <= shortest <= longest:
        raise ValueError(f"shortest={shortest} is not in 1 .. longest={longest}")


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w] -> uint8 [*size], the label nearest to each pixel's centre."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.NEAREST))


def segment_crop(
    size: int,
    scale: tuple[float, float] = (0.5, 2.0),
    base: tuple[int, int] = (2048, 512),
    share: float = 0.75,
) -> Callable:
    """mmsegmentation's training view: resize, crop to `size`, flip.

    The picture is resized to fit base (long side, short side) times U(scale). A window
    is drawn anew, up to ten times, while a single class makes up `share` or more of its
    labelled pixels; share=1 accepts the first window. Yields "map" [size, size], where
    255 is ignored, and "hw".
    """
    check_range("scale", scale)
    check_sides(base[1], base[0])
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is not above 0 and at most 1")
    pair(size)  # checks that the size is positive

    def op(picture, annotation, rng):
        image = moves.start(picture, annotation, Map).image
        ratio = scale[0] + (scale[1] - scale[0]) * rng.random()
        new_size = moves.fitted_size(image.shape[:2], base[1] * ratio, base[0] * ratio)
        image = host_ops.resize(image, new_size, "bilinear", antialias=True)
        labels = resize_labels(annotation.labels, new_size)
        window = varied_window(labels, size, share, rng)
        image, labels = image[window], labels[window]
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        arrays = {"map": moves.pad(labels, (size, size), IGNORED)}
        arrays["hw"] = np.array(labels.shape, np.float32)
        return moves.pad(image, (size, size), 0), arrays

    return op


def varied_window(labels: np.ndarray, size: int, share: float, rng) -> tuple:
    """Slices of a window of `size` where no class has `share` of the labelled pixels.

    After REDRAWS failures the last window is taken as it is.
    """
    for _ in range(REDRAWS + 1):
        top, left = (int(rng.integers(max(s - size, 0) + 1)) for s in labels.shape)
        window = slice(top, top + size), slice(left, left + size)
        if share == 1:
            break
        # [:IGNORED] removes the pixels without a class from the counts.
        counts = np.bincount(labels[window].reshape(-1), minlength=256)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < share * counts.sum():
            break
    return window


def segment_fit(shortest: int, longest: int) -> Callable:
    """mmsegmentation's test view: the whole picture, resized, without padding.

    Image sizes therefore differ. Yields "map" [H, W], the labels at the file's size,
    since predictions are scored there.
    """
    check_sides(shortest, longest)

    def op(picture, annotation, rng):
        image = moves.start(picture, annotation, Map).image
        new_size = moves.fitted_size(image.shape[:2], shortest, longest)
        image = host_ops.resize(image, new_size, "bilinear", antialias=True)
        return image, {"map": annotation.labels}

    return op


OPS = {"segment_crop": segment_crop, "segment_fit": segment_fit}
