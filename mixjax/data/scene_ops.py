"""View operations of scenes: a picture and its boxes, masks or labels move together.

Each takes its arguments from a view's text and returns op(picture, annotation, rng) ->
(uint8 [H, W, 3], {name: array}), with arrays of one shape for all pictures; the picture
lies at the top left of its canvas, black beyond. Objects give "boxes" [M, 4], "classes"
[M], "present" [M], "masks" [M, S, S] (what each fills of its box), "hw" [2], the height
and width of the picture on the canvas, and "dropped", the objects without a place.
Maps of classes have theirs in map_ops. Resizing is Pillow's bilinear, which smooths as
it shrinks.
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
# DETR's second way to see a picture: short side, then a window, then resized again.
FIRST_SIDES, FIRST_LONGEST, WINDOW = (400, 500, 600), 1333, (384, 600)


def check_room(objects: int, mask_side: int) -> None:
    """ValueError unless there is room for an object, and no mask is negative."""
    if objects < 1 or mask_side < 0:
        raise ValueError(f"objects={objects}, mask_side={mask_side} are too few")


def large_jitter(
    size: int,
    scale: tuple[float, float] = (0.1, 2.0),
    objects: int = 100,
    mask_side: int = 112,
) -> Op:
    """ViTDet's large-scale jitter on a canvas of `size`: flip, resize, cut.

    The picture is resized to fit into a square of `size` times U(scale). What is larger
    than the canvas is cut, at one uniform number for both axes, so that windows lie on
    the diagonal, as in detectron2. Boxes are drawn anew around the cut masks.
    """
    check_range("scale", scale)
    check_room(objects, mask_side)
    pair(size)

    def op(picture, annotation, rng):
        moved = moves.start(picture, annotation, Objects)
        if rng.random() < 0.5:
            moved = moves.flip(moved)
        side = size * (scale[0] + (scale[1] - scale[0]) * rng.random())
        height, width = moved.image.shape[:2]
        factor = min(side / height, side / width)
        new = (max(round(height * factor), 1), max(round(width * factor), 1))
        moved = moves.resize(moved, new)
        where = rng.random()
        top, left = (round(max(s - size, 0) * where) for s in new)
        moved = moves.cut(moved, top, left, size, size)
        result = targets(
            moved, annotation, room=objects, mask_side=mask_side, tight=True
        )
        return moves.pad(moved.image, (size, size), 0), result

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
    """The short side to one of `sizes`, the long one to no more than `longest`.

    What would not fit the canvas is made smaller until it does. crop: every other
    picture is first resized to one of FIRST_SIDES and cut to a window of WINDOW pixels
    a side (DETR, iBOT); boxes are then drawn anew around the cut masks.
    """
    check_sides(min(sizes, default=0), longest)
    check_room(objects, mask_side)
    if not 0 <= flip <= 1:
        raise ValueError(f"flip={flip} is not a probability")
    canvas = pair(canvas)

    def op(picture, annotation, rng):
        moved = moves.start(picture, annotation, Objects)
        if rng.random() < flip:
            moved = moves.flip(moved)
        if crop and rng.random() < 0.5:
            moved = shrunk(moved, rng.choice(FIRST_SIDES), FIRST_LONGEST)
            moved = cut_anywhere(moved, rng)
        moved = shrunk(moved, rng.choice(sizes), longest, canvas)
        result = targets(
            moved, annotation, room=objects, mask_side=mask_side, tight=crop
        )
        return moves.pad(moved.image, canvas, 0), result

    return op


def shrunk(moved: Moved, shortest: int, longest: int, canvas=None) -> Moved:
    """Resized as moves.fitting says, and to no more than the canvas."""
    size = moved.image.shape[:2]
    new = moves.fitting(size, shortest, longest)
    if canvas is not None and (new[0] > canvas[0] or new[1] > canvas[1]):
        factor = min(canvas[0] / size[0], canvas[1] / size[1])
        new = tuple(
            min(max(int(side * factor + 0.5), 1), most)
            for side, most in zip(size, canvas, strict=True)
        )
    return moves.resize(moved, new)


def cut_anywhere(moved: Moved, rng: np.random.Generator) -> Moved:
    """A window with each side from U(WINDOW), or all where the picture has less."""
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
    """As a detector is tested: the whole picture, resized, with nothing of chance.

    Gives "hw" and "original", the height and width before. What would not fit the
    canvas is made smaller until it does. To look at beside what is found: so many
    `objects`, with masks of mask_side; of a map of classes its "map".
    """
    check_sides(shortest, longest)
    if objects:
        check_room(objects, mask_side)
    canvas = pair(canvas)

    def op(picture, annotation, rng):
        moved = moves.start(picture, annotation, Objects, Map)
        original = np.array(moved.image.shape[:2], np.float32)
        moved = shrunk(moved, shortest, longest, canvas)
        result = {"hw": np.array(moved.image.shape[:2], np.float32)}
        result["original"] = original
        if isinstance(annotation, Map):
            labels = map_ops.resize_labels(annotation.labels, moved.image.shape[:2])
            result["map"] = moves.pad(labels, canvas, IGNORED)
        elif objects:
            settings = {"room": objects, "mask_side": mask_side, "tight": False}
            result |= targets(moved, annotation, **settings)
        return moves.pad(moved.image, canvas, 0), result

    return op


OPS = {"large_jitter": large_jitter, "short_side": short_side, "fit": fit}
OPS |= map_ops.OPS
