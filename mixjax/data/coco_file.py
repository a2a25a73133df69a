"""COCO's annotation files of objects: read, checked, and in the order of their numbers.

Whatever is wrong with a file is a UsageError of one sentence that names it and the
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
    """One annotation file, read."""

    file: Path
    pictures: tuple[str, ...]  # names of files, by the number of the picture
    splits: tuple[str | None, ...]  # what each entry says
    objects: tuple[Objects, ...]
    category_ids: tuple[int, ...]  # the file's number of each class
    names: tuple[str, ...]


def load(file: Path) -> CocoSet:
    """Reads an annotation file, once while it stays as it is."""
    known = file.stat()
    return _load(file, known.st_mtime_ns, known.st_size)


@functools.lru_cache(maxsize=4)
def _load(file: Path, changed: int, size: int) -> CocoSet:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"data: {file} is not JSON: {error}.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UsageError(f"data: {file} has no list {key!r}.")
    things, stuff = _categories(file, content["categories"])
    entries = _images(file, content["images"])
    rows, with_shapes = _rows(file, content["annotations"], entries, things, stuff)
    order = sorted(entries)
    return CocoSet(
        file=file,
        pictures=tuple(entries[id].name for id in order),
        splits=tuple(entries[id].split for id in order),
        objects=tuple(
            objects(id, *entries[id].size, rows[id], with_shapes) for id in order
        ),
        category_ids=tuple(sorted(things)),
        names=tuple(things[id] for id in sorted(things)),
    )


def _each(file: Path, key: str, entries: list, read: Callable) -> Iterator:
    """read(entry) of each; what is wrong with one becomes a UsageError naming it."""
    for i, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise TypeError("it is not an object in braces")
            yield read(entry)
        except KeyError as error:
            raise UsageError(f"data: {file}: {key}[{i}] has no {error}.") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"data: {file}: {key}[{i}]: {error}.") from error


def _number(entry: dict, key: str, taken) -> int:
    number = entry[key]
    if type(number) is not int:
        raise TypeError(f"{key}={number!r} is not a whole number")
    if number in taken:
        raise ValueError(f"{key}={number} is there twice")
    return number


def _categories(file: Path, entries: list) -> tuple[dict[int, str], set[int]]:
    """({id: name} of things, ids of stuff)."""
    things, stuff = {}, set()

    def read(entry):
        id = _number(entry, "id", things.keys() | stuff)
        if entry.get("isthing") == 0:
            stuff.add(id)
        else:
            things[id] = str(entry["name"])

    list(_each(file, "categories", entries, read))
    return things, stuff


class _Image(NamedTuple):
    name: str
    size: tuple[int, int]  # height, width
    split: str | None


def _images(file: Path, entries: list) -> dict[int, _Image]:
    masks = {}

    def read(entry):
        id = _number(entry, "id", masks)
        size = tuple(_number(entry, side, ()) for side in ("height", "width"))
        if min(size) < 1:
            raise ValueError(f"height x width is {size[0]} x {size[1]}")
        masks[id] = _Image(str(entry["file_name"]), size, entry.get("split"))

    list(_each(file, "images", entries, read))
    return masks


def _rows(
    file: Path, entries: list, images: dict, things: dict, stuff: set
) -> tuple[dict[int, list], bool]:
    """({image: rows of scenes.objects}, whether any has a shape)."""
    number = {id: i for i, id in enumerate(sorted(things))}

    def read(entry):
        id, category = entry["image_id"], entry["category_id"]
        if id not in images:
            raise ValueError(f"image_id={id!r} is not in images")
        if category in stuff:
            return None
        if category not in number:
            raise ValueError(f"category_id={category!r} is not in categories")
        box, area = _box(entry["bbox"]), _finite(entry["area"])
        shape = _shape(entry.get("segmentation"), *images[id].size)
        crowd = bool(entry["iscrowd"])
        return id, (box, number[category], crowd, False, area, shape)

    annotations = [row for row in _each(file, "annotations", entries, read) if row]
    with_shapes = any(row[-1] is not None for _, row in annotations)
    kept, left_out = {id: [] for id in images}, 0
    for id, row in annotations:
        if row[0] is None or (with_shapes and row[-1] is None):
            left_out += 1
        else:
            kept[id].append(row)
    if left_out:
        log.info("%s: %d objects without area or outline left out", file, left_out)
    return kept, with_shapes


def _finite(value) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} is not finite")
    return float(value)


def _box(box: list) -> tuple[float, ...] | None:
    """(x, y, width, height) -> (x0, y0, x1, y1); None if it is empty."""
    x, y, width, height = (_finite(v) for v in box)
    return (x, y, x + width, y + height) if min(width, height) > 0 else None


def _shape(shape: Shape, height: int, width: int) -> Shape:
    """A shape as Objects has it; None if nothing of it can be drawn."""
    if shape is None:
        return None
    if isinstance(shape, dict):
        if list(shape["size"]) != [height, width]:
            raise ValueError(f"segmentation of size {shape['size']}, not its image's")
        rasterise(shape, height, width)  # is it whole?
        return shape
    kept = [p for p in shape if len(p) >= 6 and len(p) % 2 == 0]
    polygons = [np.array(p, np.float64) for p in kept]
    if not all(p.ndim == 1 and np.isfinite(p).all() for p in polygons):
        raise ValueError("segmentation is not lists of numbers")
    return polygons or None
