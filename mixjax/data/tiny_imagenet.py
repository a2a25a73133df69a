"""Labels of Tiny-ImageNet in the folder layout of its archive.

wnids.txt lists the classes. The training pictures are in train/<class>/images/. All
validation pictures are in val/images/, and val/val_annotations.txt has their classes.
The pictures in test/images/ have no labels.
"""

import os
from pathlib import Path

import numpy as np

from mixjax.errors import UsageError, nearest

CLASSES, ANNOTATIONS, FLAT = "wnids.txt", "val_annotations.txt", "images"


def is_here(path: Path) -> bool:
    """Whether `path` is the folder of the archive."""
    return (path / CLASSES).is_file()


def label(
    path: Path, root: Path, paths: list[str]
) -> tuple[np.ndarray | None, list[str]]:
    """(labels [N], class names) of the pictures `paths` in `root`, a split's folder.

    Labels are indices into the sorted names of wnids.txt; test pictures give
    (None, []). Raises UsageError if a class is not listed or if the pictures and the
    annotations do not match.
    """
    names = sorted((path / CLASSES).read_text().split())
    number = {name: i for i, name in enumerate(names)}
    folders = [os.path.relpath(p, root).split(os.sep)[0] for p in paths]
    if set(folders) != {FLAT}:  # class folders, as in train/
        labels = dict(zip(paths, folders, strict=True))
    elif root.name == "test":
        return None, []
    else:
        labels = _annotated(root, paths)
    # Checked here, so that a stray folder is an error and not a class of its own.
    for picture, name in labels.items():
        if name not in number:
            raise UsageError(
                f"data: {picture} is of class {name!r}, which {path / CLASSES} does "
                f"not list; {nearest(name, number)}"
            )
    return np.array([number[labels[p]] for p in paths]), names


def _annotated(root: Path, paths: list[str]) -> dict[str, str]:
    """{path: class} from lines with a picture's name, its class, and a box."""
    file = root / ANNOTATIONS
    if not file.is_file():
        raise UsageError(
            f"data: {root} has no {ANNOTATIONS}, which names the classes of the "
            f"pictures in {root / FLAT}."
        )
    lines = [line.split() for line in file.read_text().splitlines()]
    # Empty lines are allowed; one word alone is a picture without its class.
    short = [n for n, line in enumerate(lines, 1) if len(line) == 1]
    if short:
        raise UsageError(f"data: line {short[0]} of {file} does not name a class.")
    labels = {str(root / FLAT / line[0]): line[1] for line in lines if line}
    missing = sorted(set(labels) - set(paths))
    unlisted = sorted(set(paths) - set(labels))
    if missing or unlisted:
        raise UsageError(
            f"data: {file} does not match the pictures in {root / FLAT} (listed but "
            f"missing: {len(missing)}, not listed: {len(unlisted)}), such as "
            f"{(missing + unlisted)[0]}."
        )
    return labels
