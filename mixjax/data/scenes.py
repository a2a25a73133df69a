"""What is known of a picture beyond its class: its objects, or a class per pixel.

Boxes are (x0, y0, x1, y1) in continuous coordinates: pixel i covers i .. i + 1.
"""

from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError

IGNORED = 255  # the label of a pixel that does not count
Shape = list | dict | None


class Objects(NamedTuple):
    """The objects of one picture, in the pixels of its file.

    A shape is a list of polygons, each [2 n] float64 (x, y, x, y, ..); or a run-length
    code {"size": [height, width], "counts": list, text or bytes}, column by column; or
    None if it is not known.
    """

    id: int  # the picture's own number in its set
    height: int
    width: int
    boxes: np.ndarray  # [n, 4] float32
    classes: np.ndarray  # [n] int32, 0 .. classes - 1
    crowd: np.ndarray  # [n] bool: a region of several, not to be told apart
    difficult: np.ndarray  # [n] bool: trained on, not counted when scored (VOC)
    area: np.ndarray  # [n] float32, in pixels of the shape
    shapes: tuple[Shape, ...]  # () if the set has none


class Map(NamedTuple):
    """A class for each pixel of one picture."""

    labels: np.ndarray  # [H, W] uint8, 255 is ignored
    id: str  # the name of the picture's file, without its ending


def objects(
    id: int, height: int, width: int, rows: list[tuple], with_shapes: bool
) -> Objects:
    """Objects of rows (box, class, crowd, difficult, area, shape); there may be none.

    with_shapes: whether the set has shapes; without, those of the rows are not kept.
    """
    boxes, classes, crowd, difficult, area, shapes = (
        zip(*rows, strict=True) if rows else [()] * 6
    )
    return Objects(
        id=id,
        height=height,
        width=width,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),  # [n, 4]
        classes=np.array(classes, np.int32),
        crowd=np.array(crowd, bool),
        difficult=np.array(difficult, bool),
        area=np.array(area, np.float32),
        shapes=tuple(shapes) if with_shapes else (),
    )


def together(annotations: list) -> np.ndarray:
    """[N] of dtype object: a list that indexes as arrays do; nothing is stacked."""
    rows = np.empty(len(annotations), object)
    for i, annotation in enumerate(annotations):
        rows[i] = annotation
    return rows


def rasterise(shape: list | dict, height: int, width: int) -> np.ndarray:
    """A shape as pixels, bool [height, width], with COCO's own rasteriser.

    It draws on a grid five times as fine; any other one moves borders by half a pixel.
    ValueError if a run-length code is broken.
    """
    if isinstance(shape, list):
        from pycocotools import mask as coco_masks  # only scenes need it

        shape = coco_masks.merge(coco_masks.frPyObjects(shape, height, width))
    counts = shape["counts"]
    runs = np.array(counts) if isinstance(counts, list) else run_lengths(counts)
    if min(runs, default=-1) < 0 or runs.sum() != height * width:
        raise ValueError("segmentation counts do not sum to height x width")
    filled = np.arange(len(runs)) % 2 == 1  # the first run is empty
    return np.repeat(filled, runs).reshape(width, height).T  # [height, width]


def run_lengths(text: str | bytes) -> np.ndarray:
    """COCO's compressed counts -> int64 [n]; pycocotools' own decoder warns.

    Each character is 48 + 5 bits of a number, the low ones first, + 32 if more follow;
    the last has the sign. From the fourth on, numbers are less the last but one.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("segmentation counts are no run-length code")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))
    places = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    if places.max() > 50:
        raise ValueError("segmentation counts hold a number that is too large")
    values = np.add.reduceat((codes & 31) << places, starts)
    values -= np.where(codes[last] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        values[first::2] = values[first::2].cumsum()
    return values


def check_size(array: np.ndarray, annotation: Objects | Map) -> None:
    """UsageError unless a decoded picture [H, W, C] is as large as its annotation."""
    if isinstance(annotation, Map):
        size = annotation.labels.shape
    else:
        size = (annotation.height, annotation.width)
    if array.shape[:2] != size:
        raise UsageError(
            f"data: picture {annotation.id} is {array.shape[0]} x {array.shape[1]} "
            f"(height x width), but its annotation is for {size[0]} x {size[1]}."
        )
