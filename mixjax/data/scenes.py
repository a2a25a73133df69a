"""Annotations of a picture beyond its class: its objects, or a class per pixel.

Boxes are (x0, y0, x1, y1) in continuous coordinates: pixel i covers i .. i + 1.
"""

from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError

IGNORED = 255  # the label of pixels that count neither in the loss nor in the score
Shape = list | dict | None


class Objects(NamedTuple):
    """The objects of one picture, in pixel coordinates of its file.

    A shape is a list of polygons, each [2 n] float64 (x, y, x, y, ..); or a run-length
    code {"size": [height, width], "counts": list, text or bytes}, column by column; or
    None if it is unknown.
    """

    id: int  # the picture's number in its dataset
    height: int
    width: int
    boxes: np.ndarray  # [n, 4] float32
    classes: np.ndarray  # [n] int32, 0 .. classes - 1
    crowd: np.ndarray  # [n] bool: a region of objects that cannot be told apart
    difficult: np.ndarray  # [n] bool: trained on, but not scored (VOC)
    area: np.ndarray  # [n] float32, of the shape, in pixels
    shapes: tuple[Shape, ...]  # () if the dataset has none


class Map(NamedTuple):
    """The class of every pixel of one picture."""

    labels: np.ndarray  # [H, W] uint8; 255 is ignored
    id: str  # the name of the picture's file without its suffix


def objects(
    id: int, height: int, width: int, rows: list[tuple], with_shapes: bool
) -> Objects:
    """Objects from rows (box, class, crowd, difficult, area, shape), possibly none.

    with_shapes: whether the dataset has shapes; if not, those of the rows are dropped.
    """
    boxes, classes, crowd, difficult, area, shapes = (
        zip(*rows, strict=True) if rows else [()] * 6
    )
    return Objects(
        id=id,
        height=height,
        width=width,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),  # [n, 4], also for n = 0
        classes=np.array(classes, np.int32),
        crowd=np.array(crowd, bool),
        difficult=np.array(difficult, bool),
        area=np.array(area, np.float32),
        shapes=tuple(shapes) if with_shapes else (),
    )


def object_array(annotations: list) -> np.ndarray:
    """Annotations as an array [N] of dtype object, which index arrays can select from.

    np.array(annotations) would try to stack their fields instead.
    """
    array = np.empty(len(annotations), object)
    for i, annotation in enumerate(annotations):
        array[i] = annotation
    return array


def rasterise(shape: list | dict, height: int, width: int) -> np.ndarray:
    """A shape as a mask, bool [height, width], drawn by COCO's own rasteriser.

    It draws on a grid five times as fine; any other rasteriser moves borders by half a
    pixel. Raises ValueError if a run-length code is malformed.
    """
    if isinstance(shape, list):
        from pycocotools import mask as coco_masks  # needed for scenes only

        shape = coco_masks.merge(coco_masks.frPyObjects(shape, height, width))
    counts = shape["counts"]
    runs = np.array(counts) if isinstance(counts, list) else run_lengths(counts)
    if min(runs, default=-1) < 0 or runs.sum() != height * width:
        raise ValueError("segmentation counts do not sum to height x width")
    # Runs alternate between background and object, and start with background.
    filled = np.arange(len(runs)) % 2 == 1
    return np.repeat(filled, runs).reshape(width, height).T  # [height, width]


def run_lengths(text: str | bytes) -> np.ndarray:
    """Decodes COCO's compressed counts to int64 [n].

    Written anew, since the decoder of pycocotools emits warnings (format:
    rleFrString of its maskApi.c). Each character is 48 plus five bits of a number,
    lowest bits first, plus 32 if the number continues; the highest bit of the last
    character is the sign. From the fourth number on, each is stored as its difference
    from the number two before it.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    is_last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not is_last[-1]:
        raise ValueError("segmentation counts are not a run-length code")
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))  # characters per number
    bit_offsets = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    if bit_offsets.max() > 50:  # the shift below would overflow int64
        raise ValueError("segmentation counts contain a number that is too large")
    values = np.add.reduceat((codes & 31) << bit_offsets, starts)
    values -= np.where(codes[is_last] & 16, 1 << 5 * lengths, 0)  # two's complement
    for first in (1, 2):  # undo the differences: 1, 3, 5, .. and 2, 4, 6, ..
        values[first::2] = values[first::2].cumsum()
    return values


def check_size(array: np.ndarray, annotation: Objects | Map) -> None:
    """Raises UsageError unless a picture [H, W, C] has the size of its annotation."""
    if isinstance(annotation, Map):
        size = annotation.labels.shape
    else:
        size = (annotation.height, annotation.width)
    if array.shape[:2] != size:
        raise UsageError(
            f"data: picture {annotation.id} is {array.shape[0]} x {array.shape[1]} "
            f"(height x width), but its annotation is for {size[0]} x {size[1]}."
        )
