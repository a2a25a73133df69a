"""What a detector learns from a picture that was moved: boxes, classes and masks.

Everything is drawn where it has come to lie; nothing that was drawn is resized.
"""

import functools
import logging

import numpy as np

from mixjax.data.scene_moves import Moved, move_boxes
from mixjax.data.scenes import Objects, rasterise
from mixjax.errors import UsageError

log = logging.getLogger("mixjax")
EMPTY = 1e-5  # a box with a side of no more than that shows nothing


def draw(shape, size, gain, shift, window: tuple[int, int]) -> np.ndarray:
    """A shape of a picture of `size`, moved, as pixels of `window`: bool [*window].

    Outlines are moved and then drawn; run-length codes are drawn and then looked up,
    each pixel at its centre.
    """
    if isinstance(shape, list):
        outlines = [whole_fifths(p.reshape(-1, 2) * gain + shift) for p in shape]
        return rasterise([p.reshape(-1) for p in outlines], *window)
    mask = rasterise(shape, *size)
    masks = []
    for axis, length in enumerate(window):
        at = (np.arange(length) + 0.5 - shift[1 - axis]) / gain[1 - axis]
        at = np.floor(at).astype(int)
        inside = (at >= 0) & (at < size[axis])
        mask = np.take(mask, at.clip(0, size[axis] - 1), axis=axis)
        masks.append(inside)
    return mask & masks[0][:, None] & masks[1]


def whole_fifths(points: np.ndarray) -> np.ndarray:
    """Points that the rasteriser rounds to fifths of a pixel as if all were positive.

    It cuts 5 v + .5 off towards zero, so that what lies left of the window or above it
    would move by a fifth towards it, and the same object look different when cut.
    """
    fifths = np.floor(5 * points + 0.5)
    return np.where(fifths < 0, (fifths - 0.75) / 5, points)


def tight_box(moved: Moved, known: Objects, i: int) -> np.ndarray:
    """The box [4] around the pixels of object i that the moved picture shows.

    Zeros if it shows none.
    """
    height, width = moved.image.shape[:2]
    low, high = np.zeros(2, int), np.array([width, height])
    shape = known.shapes[i]
    if isinstance(shape, list):  # draw no more than where it can be
        points = np.concatenate([p.reshape(-1, 2) for p in shape])
        points = points * moved.gain + moved.shift
        low = np.floor(points.min(axis=0)).clip(0, high).astype(int)
        high = np.ceil(points.max(axis=0)).clip(low, high).astype(int)
    if (high <= low).any():
        return np.zeros(4, np.float32)
    size, window = (known.height, known.width), (high[1] - low[1], high[0] - low[0])
    mask = draw(shape, size, moved.gain, moved.shift - low, window)
    box = np.zeros(4, np.float32)
    for axis, seen in enumerate((mask.any(axis=0), mask.any(axis=1))):
        at = np.flatnonzero(seen)
        if not len(at):
            return np.zeros(4, np.float32)
        box[axis], box[axis + 2] = low[axis] + at[0], low[axis] + at[-1] + 1
    return box


def mask_crop(moved: Moved, known: Objects, i: int, box, side: int) -> np.ndarray:
    """What object i fills of its box [4] on the moved picture: uint8 [side, side].

    Drawn at that resolution, not resized to it.
    """
    ratio = side / (box[2:] - box[:2]).astype(np.float64)
    gain, shift = moved.gain * ratio, (moved.shift - box[:2]) * ratio
    size = (known.height, known.width)
    return draw(known.shapes[i], size, gain, shift, (side, side)).astype(np.uint8)


def targets(
    moved: Moved, known: Objects, *, room: int, mask_side: int, tight: bool
) -> dict[str, np.ndarray]:
    """What a detector learns from: arrays of `room` objects, the present ones first.

    Crowds are left out, and what the picture no longer shows. Where there are more than
    there is room for, the largest boxes stay, and the others are counted. tight: boxes
    are drawn anew around the pixels of the masks. mask_side: 0 for no masks.
    """
    _check_shapes(known, mask_side)
    shown, boxes = shown_boxes(moved, known, tight=tight and mask_side > 0)
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    stay = np.sort(np.argsort(-sizes, kind="stable")[:room])
    chosen, boxes = shown[stay], boxes[stay]
    rows = {"boxes": boxes, "classes": known.classes[chosen]}
    rows["present"] = np.ones(len(chosen), bool)
    if mask_side:
        masks = np.zeros((len(chosen), mask_side, mask_side), np.uint8)
        for mask, i, box in zip(masks, chosen, boxes, strict=True):
            mask[:] = mask_crop(moved, known, i, box, mask_side)
        rows["masks"] = masks
    rows = {k: padded_rows(v, room) for k, v in rows.items()}
    rows["hw"] = np.array(moved.image.shape[:2], np.float32)
    rows["dropped"] = np.array(len(shown) - len(stay), np.int32)
    if len(shown) > room:
        warn_of_room(known.id, len(shown), room)
    return rows


@functools.lru_cache(maxsize=1000)  # a picture is warned of once
def warn_of_room(id: int, shown: int, room: int) -> None:
    """Says that a picture has more objects than the views keep."""
    log.warning(
        "picture %s shows %d objects, and objects=%d of data.views has no room for "
        "all; the largest stay (train/dropped counts the others)",
        id,
        shown,
        room,
    )


def shown_boxes(
    moved: Moved, known: Objects, *, tight: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(which objects outside crowds the moved picture shows [n], boxes [n, 4])."""
    single = np.flatnonzero(~known.crowd)
    boxes = move_boxes(moved, known.boxes[single])
    if tight:
        boxes = [tight_box(moved, known, i) for i in single]
        boxes = np.array(boxes, np.float32).reshape(-1, 4)  # [n, 4]
    visible = (boxes[:, 2:] - boxes[:, :2] > EMPTY).all(axis=1)
    return single[visible], boxes[visible]


def _check_shapes(known: Objects, mask_side: int) -> None:
    shapes = [shape for shape in known.shapes if shape is not None]
    if mask_side and len(shapes) < len(known.boxes):
        raise UsageError(
            f"data: picture {known.id} has objects without masks; write mask_side=0 "
            f"to learn from boxes alone."
        )


def padded_rows(array: np.ndarray, room: int) -> np.ndarray:
    """[n, ...] -> [room, ...], zeros at the end."""
    return np.concatenate(
        [array, np.zeros((room - len(array), *array.shape[1:]), array.dtype)]
    )
