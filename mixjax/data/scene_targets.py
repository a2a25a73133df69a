"""The targets of a detector for a transformed picture: boxes, classes and masks.

Shapes are transformed first and then rasterised at the resolution needed; masks are
never resized.
"""

import functools
import logging

import numpy as np

from mixjax.data.scene_moves import Moved, move_boxes
from mixjax.data.scenes import Objects, rasterise
from mixjax.errors import UsageError

log = logging.getLogger("mixjax")
EMPTY = 1e-5  # pixels: an object is invisible if a side of its box is at most this


def draw_mask(shape, size, gain, shift, window: tuple[int, int]) -> np.ndarray:
    """Rasterises a transformed shape into a window: bool [*window].

    size: height and width of the shape's picture; gain and shift: [2], of (x, y), as in
    Moved. Outlines are transformed, then drawn. Run-length codes are drawn at their
    own size; each pixel of the window then looks up the value at its centre.
    """
    if isinstance(shape, list):
        outlines = [round_to_fifths(p.reshape(-1, 2) * gain + shift) for p in shape]
        return rasterise([p.reshape(-1) for p in outlines], *window)
    mask = rasterise(shape, *size)
    inside_axes = []
    for axis, length in enumerate(window):  # axis 0 is y, hence 1 - axis
        source = (np.arange(length) + 0.5 - shift[1 - axis]) / gain[1 - axis]
        source = np.floor(source).astype(int)
        inside_axes.append((source >= 0) & (source < size[axis]))
        mask = np.take(mask, source.clip(0, size[axis] - 1), axis=axis)
    return mask & inside_axes[0][:, None] & inside_axes[1]


def round_to_fifths(points: np.ndarray) -> np.ndarray:
    """Adjusts negative coordinates so that COCO's rasteriser floors them.

    It rounds to fifths of a pixel by truncating 5 v + 0.5 towards zero. Left of the
    window or above it, that would move outlines by a fifth towards the window, so an
    object would look different when cropped. The result is [n, 2], as the points.
    """
    fifths = np.floor(5 * points + 0.5)
    # 5 v + 0.5 becomes fifths - 0.25, which truncates to `fifths` if that is negative.
    return np.where(fifths < 0, (fifths - 0.75) / 5, points)


def tight_box(moved: Moved, annotation: Objects, i: int) -> np.ndarray:
    """The box [4] around the visible pixels of object i; zeros if there are none."""
    height, width = moved.image.shape[:2]
    low, high = np.zeros(2, int), np.array([width, height])  # of the window, (x, y)
    shape = annotation.shapes[i]
    if isinstance(shape, list):  # draw only the region that the outline spans
        points = np.concatenate([p.reshape(-1, 2) for p in shape])  # [n, 2]
        points = points * moved.gain + moved.shift
        low = np.floor(points.min(axis=0)).clip(0, high).astype(int)
        high = np.ceil(points.max(axis=0)).clip(low, high).astype(int)
    if (high <= low).any():
        return np.zeros(4, np.float32)
    size = (annotation.height, annotation.width)
    window = (high[1] - low[1], high[0] - low[0])
    mask = draw_mask(shape, size, moved.gain, moved.shift - low, window)
    box = np.zeros(4, np.float32)
    for axis, occupied in enumerate((mask.any(axis=0), mask.any(axis=1))):  # x, then y
        indices = np.flatnonzero(occupied)
        if not len(indices):
            return np.zeros(4, np.float32)
        box[axis] = low[axis] + indices[0]
        box[axis + 2] = low[axis] + indices[-1] + 1  # the far edge of the last pixel
    return box


def mask_crop(moved: Moved, annotation: Objects, i: int, box, side: int) -> np.ndarray:
    """The mask of object i within its box [4] on the picture: uint8 [side, side].

    Drawn at that resolution rather than resized to it.
    """
    ratio = side / (box[2:] - box[:2]).astype(np.float64)
    gain, shift = moved.gain * ratio, (moved.shift - box[:2]) * ratio
    size = (annotation.height, annotation.width)
    mask = draw_mask(annotation.shapes[i], size, gain, shift, (side, side))
    return mask.astype(np.uint8)


def targets(
    moved: Moved, annotation: Objects, *, capacity: int, mask_side: int, tight: bool
) -> dict[str, np.ndarray]:
    """The arrays that a detector learns from, described in scene_ops.

    Each has `capacity` rows, those of visible objects first. Crowds are left out. Of
    more than `capacity` objects the largest boxes are kept; "dropped" counts the
    others. tight: boxes are recomputed from the pixels of the masks. mask_side: 0 for
    no masks. Raises UsageError if masks are wanted but the annotation lacks some.
    """
    _check_shapes(annotation, mask_side)
    visible, boxes = visible_boxes(moved, annotation, tight=tight and mask_side > 0)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    # The largest boxes, in the order of the annotation.
    kept = np.sort(np.argsort(-areas, kind="stable")[:capacity])
    indices, boxes = visible[kept], boxes[kept]
    arrays = {"boxes": boxes, "classes": annotation.classes[indices]}
    arrays["present"] = np.ones(len(indices), bool)
    if mask_side:
        masks = np.zeros((len(indices), mask_side, mask_side), np.uint8)
        for mask, i, box in zip(masks, indices, boxes, strict=True):
            mask[:] = mask_crop(moved, annotation, i, box, mask_side)
        arrays["masks"] = masks
    arrays = {name: pad_rows(array, capacity) for name, array in arrays.items()}
    arrays["hw"] = np.array(moved.image.shape[:2], np.float32)
    arrays["dropped"] = np.array(len(visible) - len(kept), np.int32)
    if len(visible) > capacity:
        warn_of_dropped(annotation.id, len(visible), capacity)
    return arrays


@functools.lru_cache(maxsize=1000)  # one warning per picture, not one per epoch
def warn_of_dropped(id: int, visible: int, capacity: int) -> None:
    """Warns that a picture has more objects than the views keep."""
    log.warning(
        "picture %s has %d visible objects, but objects=%d of data.views keeps only "
        "the largest (train/dropped counts the others)",
        id,
        visible,
        capacity,
    )


def visible_boxes(
    moved: Moved, annotation: Objects, *, tight: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(indices [n] of the visible objects outside crowds, their boxes [n, 4])."""
    single = np.flatnonzero(~annotation.crowd)
    boxes = move_boxes(moved, annotation.boxes[single])
    if tight:
        boxes = [tight_box(moved, annotation, i) for i in single]
        boxes = np.array(boxes, np.float32).reshape(-1, 4)  # [n, 4], also for n = 0
    visible = (boxes[:, 2:] - boxes[:, :2] > EMPTY).all(axis=1)
    return single[visible], boxes[visible]


def _check_shapes(annotation: Objects, mask_side: int) -> None:
    shapes = [shape for shape in annotation.shapes if shape is not None]
    if mask_side and len(shapes) < len(annotation.boxes):
        raise UsageError(
            f"data: picture {annotation.id} has objects without masks; set "
            f"mask_side=0 in data.views to learn from boxes alone."
        )


def pad_rows(array: np.ndarray, count: int) -> np.ndarray:
    """[n, ...] -> [count, ...], with zeros at the end."""
    return np.concatenate(
        [array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)]
    )
