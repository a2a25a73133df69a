"""Where a scene goes as its picture is flipped, resized and cut.

Each move changes the pixels and, beside them, where the original coordinates have gone:
x of the file is now at gain * x + shift. Boxes and outlines follow in one step, at the
end, so they lose nothing on the way.
"""

from typing import NamedTuple

import numpy as np

from mixjax.data import host_ops
from mixjax.data.scenes import Map, Objects, check_size
from mixjax.errors import UsageError

Scene = Objects | Map


class Moved(NamedTuple):
    """A picture on its way, and where its own coordinates have gone."""

    image: np.ndarray  # uint8 [h, w, 3]
    gain: np.ndarray  # [2] float64, of (x, y)
    shift: np.ndarray  # [2] float64


def start(picture: bytes | np.ndarray, annotation: Scene, *kinds: type) -> Moved:
    """The decoded picture, which has not moved yet.

    UsageError if its annotation is none of `kinds` or for a picture of another size.
    """
    if not isinstance(annotation, kinds):
        wanted = "boxes" if Objects in kinds else "a class for each pixel"
        raise UsageError(
            f"data: the views' first operation moves {wanted} along with a picture, "
            f"which the source does not have."
        )
    image = host_ops.to_array(picture, 3)
    check_size(image, annotation)
    return Moved(image, np.ones(2), np.zeros(2))


def flip(moved: Moved) -> Moved:
    """Left to right."""
    mirror, width = np.array([-1.0, 1.0]), moved.image.shape[1]
    shift = moved.shift * mirror + (width, 0)
    return Moved(moved.image[:, ::-1], moved.gain * mirror, shift)


def resize(moved: Moved, size: tuple[int, int]) -> Moved:
    """To (height, width); bilinear as Pillow has it, which smooths as it shrinks."""
    height, width = moved.image.shape[:2]
    ratio = np.array([size[1] / width, size[0] / height])
    image = host_ops.resize(moved.image, size, "bilinear", antialias=True)
    return Moved(image, moved.gain * ratio, moved.shift * ratio)


def cut(moved: Moved, top: int, left: int, height: int, width: int) -> Moved:
    """The window of that size, or what of it the picture has."""
    image = moved.image[top : top + height, left : left + width]
    return moved._replace(image=image, shift=moved.shift - (left, top))


def fitting(size: tuple[int, int], shortest: float, longest: float) -> tuple[int, int]:
    """`size` times what makes the short side `shortest`, or less for `longest`.

    Halves go up, as in detectron2 and mmsegmentation; no side is less than 1.
    """
    factor = min(shortest / min(size), longest / max(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def pad(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """[h, w, ...] -> [*size, ...], filled with `value` to the right and below."""
    canvas = np.full((*size, *array.shape[2:]), value, array.dtype)
    canvas[: array.shape[0], : array.shape[1]] = array
    return canvas


def move_boxes(moved: Moved, boxes: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] of the file on the moved picture, cut off at its borders; float32.

    Those that lie outside come back empty.
    """
    corners = boxes.reshape(-1, 2, 2) * moved.gain + moved.shift  # [n, 2, (x, y)]
    corners = np.sort(corners, axis=1).clip(0, moved.image.shape[1::-1])
    return corners.reshape(-1, 4).astype(np.float32)  # [n, 4]
