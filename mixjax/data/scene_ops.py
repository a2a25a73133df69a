"""View operations of scenes: they transform a picture and its annotation together.

Each takes its arguments from a view's text and returns op(picture, annotation, rng) ->
(uint8 [H, W, 3], {name: array}), whose arrays have the same shapes for all pictures.
The picture lies in the upper left corner of its canvas, which is black elsewhere.

Objects yield "boxes" [M, 4], "classes" [M], "present" [M], "masks" [M, S, S] (the part
of its box that each object fills), "hw" [2], the height and width of the picture on the
canvas, and "dropped", the number of objects beyond M. The operations of label maps are
in map_ops. Resizing is Pillow's bilinear filter, which antialiases when it shrinks.
"""

from collections.abc import Callable

import numpy as np

from mixjax.data import map_ops
from mixjax.data import scene_moves as moves
from mixjax.data.host_ops import check_range, pair
from mixjax.data.map_ops import check_sides
from mixjax.data.scene_moves import Moved, Scene
from mixjax.data.scene_targets import targets
from mixjax.data.scenes import IGNORED, Map, Objects

Op = Callable[[bytes | np.ndarray, Scene, np.random.Generator], tuple]
# DETR's alternative to a plain resize: resize the short side to one of FIRST_SIDES, the
# long side to at most FIRST_LONGEST, crop WINDOW pixels a side, then resize again.
FIRST_SIDES, FIRST_LONGEST, WINDOW = (400, 500, 600), 1333, (384, 600)


def check_objects(objects: int, mask_side: int) -> None:
    """Raises ValueError unless objects >= 1 and mask_side >= 0."""
    if objects < 1 or mask_side < 0:
        raise ValueError(
            f"objects={objects} must be at least 1 and mask_side={mask_side} at least 0"
        )


def large_jitter(
    size: int,
    scale: tuple[float, float] = (0.1, 2.0),
    objects: int = 100,
    mask_side: int = 112,
) -> Op:
    """ViTDet's large-scale jitter on a square canvas of `size`: flip, resize, crop.

    The picture is resized to fit a square of `size` times U(scale). Whatever exceeds
    the canvas is cropped. One random number places the window along both axes, so that
    windows lie on the diagonal, as in detectron2. Boxes are recomputed from the
    cropped masks.
    """
    check_range("scale", scale)
    check_objects(objects, mask_side)
    pair(size)  # checks that the size is positive

    def op(picture, annotation, rng):
        moved = moves.start(picture, annotation, Objects)
        if rng.random() < 0.5:
            moved = moves.flip(moved)
        side = size * (scale[0] + (scale[1] - scale[0]) * rng.random())
        height, width = moved.image.shape[:2]
        factor = min(side / height, side / width)
        new_size = (max(round(height * factor), 1), max(round(width * factor), 1))
        moved = moves.resize(moved, new_size)
        position = rng.random()
        top, left = (round(max(s - size, 0) * position) for s in new_size)
        moved = moves.cut(moved, top, left, size, size)
        arrays = targets(
            moved, annotation, capacity=objects, mask_side=mask_side, tight=True
        )
        return moves.pad(moved.image, (size, size), 0), arrays

    return op


def short_side(
    sizes: tuple[int, ...],
    longest: int,
    canvas: int | tuple[int, int],
    objects: int = 100,
    mask_side: int = 112,
    flip: float = 0.5,
    crop: bool = False,
) -> Op:
    """Resizes the short side to one of `sizes`, the long side to at most `longest`.

    A picture that does not fit the canvas is shrunk until it does. With `crop`, half
    of the pictures are first resized to one of FIRST_SIDES and cropped to a window of
    WINDOW pixels a side (DETR, iBOT); boxes are then recomputed from the cropped masks.
    """
    check_sides(min(sizes, default=0), longest)
    check_objects(objects, mask_side)
    if not 0 <= flip <= 1:
        raise ValueError(f"flip={flip} is not a probability")
    canvas = pair(canvas)

    def op(picture, annotation, rng):
        moved = moves.start(picture, annotation, Objects)
        if rng.random() < flip:
            moved = moves.flip(moved)
        if crop and rng.random() < 0.5:
            moved = resize_within(moved, rng.choice(FIRST_SIDES), FIRST_LONGEST)
            moved = crop_randomly(moved, rng)
        moved = resize_within(moved, rng.choice(sizes), longest, canvas)
        arrays = targets(
            moved, annotation, capacity=objects, mask_side=mask_side, tight=crop
        )
        return moves.pad(moved.image, canvas, 0), arrays

    return op


def resize_within(moved: Moved, shortest: int, longest: int, canvas=None) -> Moved:
    """Resizes to moves.fitted_size, or less if that exceeds the canvas."""
    size = moved.image.shape[:2]
    new_size = moves.fitted_size(size, shortest, longest)
    if canvas is not None and (new_size[0] > canvas[0] or new_size[1] > canvas[1]):
        factor = min(canvas[0] / size[0], canvas[1] / size[1])
        # Rounding up must not exceed the canvas by a pixel.
        new_size = tuple(
            min(max(int(side * factor + 0.5), 1), limit)
            for side, limit in zip(size, canvas, strict=True)
        )
    return moves.resize(moved, new_size)


def crop_randomly(moved: Moved, rng: np.random.Generator) -> Moved:
    """Crops a random window with sides from U(WINDOW), at most the picture's own."""
    height, width = (
        int(rng.integers(min(side, WINDOW[0]), min(side, WINDOW[1]) + 1))
        for side in moved.image.shape[:2]
    )
    top = int(rng.integers(moved.image.shape[0] - height + 1))
    left = int(rng.integers(moved.image.shape[1] - width + 1))
    return moves.cut(moved, top, left, height, width)


def fit(
    shortest: int,
    longest: int,
    canvas: int | tuple[int, int],
    objects: int = 0,
    mask_side: int = 0,
) -> Op:
    """The test view of detectors: the whole picture, resized, without randomness.

    Yields "hw" and "original", the height and width after and before. A picture that
    does not fit the canvas is shrunk until it does. Ground truth is included only for
    figures that show it beside predictions: up to `objects` objects with masks of
    `mask_side`, or the "map" of a picture with a class per pixel.
    """
    check_sides(shortest, longest)
    if objects:
        check_objects(objects, mask_side)
    canvas = pair(canvas)

    def op(picture, annotation, rng):
        moved = moves.start(picture, annotation, Objects, Map)
        original_size = np.array(moved.image.shape[:2], np.float32)
        moved = resize_within(moved, shortest, longest, canvas)
        arrays = {"hw": np.array(moved.image.shape[:2], np.float32)}
        arrays["original"] = original_size
        if isinstance(annotation, Map):
            labels = map_ops.resize_labels(annotation.labels, moved.image.shape[:2])
            arrays["map"] = moves.pad(labels, canvas, IGNORED)
        elif objects:
            arrays |= targets(
                moved, annotation, capacity=objects, mask_side=mask_side, tight=False
            )
        return moves.pad(moved.image, canvas, 0), arrays

    return op


OPS = {"large_jitter": large_jitter, "short_side": short_side, "fit": fit}
OPS |= map_ops.OPS
