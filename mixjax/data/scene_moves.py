"""Flips, resizes and crops of a picture that keep track of its coordinates.

Each move changes the pixels and composes the affine map from the file's coordinates to
those of the result: x of the file lies at gain * x + shift. Boxes and outlines are
transformed once, at the end, so that no precision is lost in between.
"""

from typing import NamedTuple

import numpy as np

from mixjax.data import host_ops
from mixjax.data.scenes import Map, Objects, check_size
from mixjax.errors import UsageError

Scene = Objects | Map


class Moved(NamedTuple):
    """A transformed picture, and the map from the file's coordinates to its own."""

    image: np.ndarray  # uint8 [h, w, 3]
    gain: np.ndarray  # [2] float64, of (x, y)
    shift: np.ndarray  # [2] float64


def start(picture: bytes | np.ndarray, annotation: Scene, *kinds: type) -> Moved:
    """The decoded picture, with the identity as its map.

    Raises UsageError if the annotation is of none of the `kinds`, or for a picture of
    another size.
    """
    if not isinstance(annotation, kinds):
        wanted = "boxes" if Objects in kinds else "a label map"
        raise UsageError(
            f"data: the first operation of the views transforms {wanted} along with "
            f"the picture, which the source does not provide."
        )
    image = host_ops.to_array(picture, 3)
    check_size(image, annotation)
    return Moved(image, np.ones(2), np.zeros(2))


def flip(moved: Moved) -> Moved:
    """Mirrors left and right: x -> width - x."""
    mirror, width = np.array([-1.0, 1.0]), moved.image.shape[1]
    shift = moved.shift * mirror + (width, 0)
    return Moved(moved.image[:, ::-1], moved.gain * mirror, shift)


def resize(moved: Moved, size: tuple[int, int]) -> Moved:
    """Resizes to (height, width) with Pillow's antialiasing bilinear filter."""
    height, width = moved.image.shape[:2]
    ratio = np.array([size[1] / width, size[0] / height])  # of (x, y)
    image = host_ops.resize(moved.image, size, "bilinear", antialias=True)
    return Moved(image, moved.gain * ratio, moved.shift * ratio)


def cut(moved: Moved, top: int, left: int, height: int, width: int) -> Moved:
    """Crops a window of that size, or as much of it as the picture covers."""
    image = moved.image[top : top + height, left : left + width]
    return moved._replace(image=image, shift=moved.shift - (left, top))


def fitted_size(
    size: tuple[int, int], shortest: float, longest: float
) -> tuple[int, int]:
    """`size` scaled to a short side of `shortest`, but a long one of at most `longest`.

    Halves round up, as in detectron2 and mmsegmentation (Python's round would not); no
    side becomes less than 1.
    """
    factor = min(shortest / min(size), longest / max(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def pad(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """[h, w, ...] -> [*size, ...], filled with `value` on the right and below."""
    canvas = np.full((*size, *array.shape[2:]), value, array.dtype)
    canvas[: array.shape[0], : array.shape[1]] = array
    return canvas


def move_boxes(moved: Moved, boxes: np.ndarray) -> np.ndarray:
    """Transforms boxes [n, 4] of the file and clips them to the picture; float32.

    Boxes outside the picture become empty.
    """
    corners = boxes.reshape(-1, 2, 2) * moved.gain + moved.shift  # [n, 2, (x, y)]
    # A flip swaps x0 and x1, so the corners are sorted before they are clipped.
    corners = np.sort(corners, axis=1).clip(0, moved.image.shape[1::-1])
    return corners.reshape(-1, 4).astype(np.float32)  # [n, 4]
