"""Labels of Tiny-ImageNet in the folders that its archive makes.

wnids.txt lists the classes. train/<class>/images/ holds the training pictures,
val/images/ all validation pictures, whose classes val/val_annotations.txt tells, and
test/images/ pictures without labels.
"""

import os
from pathlib import Path

import numpy as np

from mixjax.errors import UsageError, nearest

CLASSES, ANNOTATIONS, FLAT = "wnids.txt", "val_annotations.txt", "images"


def is_here(path: Path) -> bool:
    """Whether `path` is the archive's folder."""
    return (path / CLASSES).is_file()


def label(
    path: Path, root: Path, paths: list[str]
) -> tuple[np.ndarray | None, list[str]]:
    """(labels, classes) of the pictures `paths` below `root`, a split of `path`.

    A class's number is its place among the sorted names of wnids.txt. (None, []) for
    test pictures. UsageError if a class is not listed, or if pictures and annotations
    do not go together.
    """
    names = sorted((path / CLASSES).read_text().split())
    number = {name: i for i, name in enumerate(names)}
    folders = [os.path.relpath(p, root).split(os.sep)[0] for p in paths]
    if set(folders) != {FLAT}:
        labels = dict(zip(paths, folders, strict=True))
    elif root.name == "test":
        return None, []
    else:
        labels = _annotated(root, paths)
    for picture, name in labels.items():
        if name not in number:
            raise UsageError(
                f"data: {picture} is of class {name!r}, which {path / CLASSES} does "
                f"not list; {nearest(name, number)}"
            )
    return np.array([number[labels[p]] for p in paths]), names


def _annotated(root: Path, paths: list[str]) -> dict[str, str]:
    """{picture: class} from lines of a picture's name, its class, and a box."""
    file = root / ANNOTATIONS
    if not file.is_file():
        raise UsageError(
            f"data: {root} has no {ANNOTATIONS}, which tells the classes of the "
            f"pictures in {root / FLAT}."
        )
    lines = [line.split() for line in file.read_text().splitlines()]
    short = [n for n, line in enumerate(lines, 1) if len(line) == 1]
    if short:
        raise UsageError(f"data: line {short[0]} of {file} does not name a class.")
    labels = {str(root / FLAT / line[0]): line[1] for line in lines if line}
    absent = sorted(set(labels) - set(paths))
    left_out = sorted(set(paths) - set(labels))
    if absent or left_out:
        raise UsageError(
            f"data: {file} names {len(absent)} pictures that are not there and leaves "
            f"out {len(left_out)} that are, such as {(absent + left_out)[0]}."
        )
    return labels
