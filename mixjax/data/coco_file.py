"""Reads and checks COCO's annotation files of objects, ordered by image id.

Every fault of a file becomes a UsageError of one sentence that names the file and the
entry.
"""

import functools
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixjax.data.scenes import Objects, Shape, objects, rasterise
from mixjax.errors import UsageError

log = logging.getLogger("mixjax")


class CocoSet(NamedTuple):
    """The content of one annotation file; images are sorted by id."""

    file: Path
    file_names: tuple[str, ...]  # of the images
    splits: tuple[str | None, ...]  # "split" of each image's entry, None if absent
    objects: tuple[Objects, ...]  # one per image
    category_ids: tuple[int, ...]  # COCO's id of each class
    class_names: tuple[str, ...]


def load(file: Path) -> CocoSet:
    """Reads an annotation file, or returns the cached content if it is unchanged."""
    status = file.stat()
    return _load(file, status.st_mtime_ns, status.st_size)


# The time and the size are only part of the cache's key: an edited file is read again.
# Four entries hold the splits of a training and an evaluation set.
@functools.lru_cache(maxsize=4)
def _load(file: Path, modified_ns: int, size: int) -> CocoSet:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # deep nesting overflows the stack
        raise UsageError(f"data: {file} is not JSON: {error}.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UsageError(f"data: {file} needs a list {key!r}.")
    things, stuff = _categories(file, content["categories"])
    images = _images(file, content["images"])
    rows, with_shapes = _rows(file, content["annotations"], images, things, stuff)
    image_ids, category_ids = sorted(images), sorted(things)
    return CocoSet(
        file=file,
        file_names=tuple(images[id].file_name for id in image_ids),
        splits=tuple(images[id].split for id in image_ids),
        objects=tuple(
            objects(id, *images[id].size, rows[id], with_shapes) for id in image_ids
        ),
        category_ids=tuple(category_ids),
        class_names=tuple(things[id] for id in category_ids),
    )


def _parsed(file: Path, key: str, entries: list, parse: Callable) -> Iterator:
    """parse(entry) of each entry; errors become a UsageError that names the entry."""
    for i, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise TypeError("the entry is not a JSON object")
            yield parse(entry)
        except KeyError as error:
            raise UsageError(f"data: {file}: {key}[{i}] has no {error}.") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"data: {file}: {key}[{i}]: {error}.") from error


def _integer(entry: dict, key: str) -> int:
    value = entry[key]
    if type(value) is not int:  # bool, a subclass of int, is refused too
        raise TypeError(f"{key}={value!r} is not an integer")
    return value


def _new_id(entry: dict, used_ids) -> int:
    """The entry's id; ValueError if an earlier entry has the same."""
    id = _integer(entry, "id")
    if id in used_ids:
        raise ValueError(f"id={id} occurs twice")
    return id


def _categories(file: Path, entries: list) -> tuple[dict[int, str], set[int]]:
    """({id: name} of the things, ids of the stuff)."""
    things, stuff = {}, set()

    def parse(entry):
        id = _new_id(entry, things.keys() | stuff)
        # "isthing" comes from panoptic files; where it is absent, all are things.
        if entry.get("isthing") == 0:
            stuff.add(id)
        else:
            things[id] = str(entry["name"])

    list(_parsed(file, "categories", entries, parse))
    return things, stuff


class _Image(NamedTuple):
    file_name: str
    size: tuple[int, int]  # height, width
    split: str | None


def _images(file: Path, entries: list) -> dict[int, _Image]:
    images = {}

    def parse(entry):
        id = _new_id(entry, images)
        height, width = _integer(entry, "height"), _integer(entry, "width")
        if min(height, width) < 1:
            raise ValueError(f"height x width = {height} x {width} is not positive")
        size = (height, width)
        images[id] = _Image(str(entry["file_name"]), size, entry.get("split"))

    list(_parsed(file, "images", entries, parse))
    return images


def _rows(
    file: Path, entries: list, images: dict, things: dict, stuff: set
) -> tuple[dict[int, list], bool]:
    """({image id: rows for scenes.objects}, whether any object has a shape)."""
    class_of = {category_id: i for i, category_id in enumerate(sorted(things))}

    def parse(entry):
        image_id, category_id = entry["image_id"], entry["category_id"]
        if image_id not in images:
            raise ValueError(f"image_id={image_id!r} is not in images")
        if category_id in stuff:
            return None
        if category_id not in class_of:
            raise ValueError(f"category_id={category_id!r} is not in categories")
        box, area = _corners(entry["bbox"]), _finite(entry["area"])
        shape = _checked_shape(entry.get("segmentation"), *images[image_id].size)
        crowd = bool(entry["iscrowd"])
        return image_id, (box, class_of[category_id], crowd, False, area, shape)

    annotations = [row for row in _parsed(file, "annotations", entries, parse) if row]
    with_shapes = any(row[-1] is not None for _, row in annotations)
    rows, skipped = {image_id: [] for image_id in images}, 0
    for image_id, row in annotations:
        # An object without a shape could not be trained on beside others with masks.
        if row[0] is None or (with_shapes and row[-1] is None):
            skipped += 1
        else:
            rows[image_id].append(row)
    if skipped:
        log.info("%s: skipped %d objects without area or outline", file, skipped)
    return rows, with_shapes


def _finite(value) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} is not finite")
    return float(value)


def _corners(box: list) -> tuple[float, ...] | None:
    """(x, y, width, height) -> (x0, y0, x1, y1); None if the box is empty."""
    x, y, width, height = (_finite(v) for v in box)
    return (x, y, x + width, y + height) if min(width, height) > 0 else None


def _checked_shape(shape: Shape, height: int, width: int) -> Shape:
    """A segmentation in the form of Objects.shapes; None if it cannot be drawn.

    Raises ValueError or TypeError if it is malformed.
    """
    if shape is None:
        return None
    if isinstance(shape, dict):
        if list(shape["size"]) != [height, width]:
            raise ValueError(
                f"segmentation of size {shape['size']} in an image of "
                f"{height} x {width} pixels"
            )
        rasterise(shape, height, width)  # only to check the run-length code
        return shape
    # Fewer than three points enclose no area; an odd count lacks a coordinate.
    drawable = [p for p in shape if len(p) >= 6 and len(p) % 2 == 0]
    polygons = [np.array(p, np.float64) for p in drawable]  # [2 n] each
    if not all(p.ndim == 1 and np.isfinite(p).all() for p in polygons):
        raise ValueError("segmentation must be lists of finite numbers")
    return polygons or None
