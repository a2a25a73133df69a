"""Pictures in folders and their labels.

Labels come from class folders. Some sets have a layout of their own, recognized by its
files: Tiny-ImageNet, FGVC-Aircraft and PASCAL VOC, each in a module of this package.
"""

import logging
import os
from pathlib import Path

import numpy as np

from mixjax.data import aircraft, tiny_imagenet, voc
from mixjax.data.source import MissingSplit, Source, label_of
from mixjax.errors import UsageError, nearest

log = logging.getLogger("mixjax")
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}
HELD_OUT = ("test", "val", "validation")  # usual folder names of the held-out split


def find_pictures(root: Path) -> tuple[list[str], int]:
    """All pictures below `root`, sorted, and the number of other files.

    Links are followed, but no folder is entered twice. Hidden files are ignored.
    """
    pictures, others, visited = [], 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back; os.walk would loop
            folders.clear()
            continue
        visited.add(real)
        # Assigned in place: os.walk enters exactly the folders left in this list.
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(f for f in files if not f.startswith(".")):
            if os.path.splitext(file)[1].lower() in PICTURES:
                pictures.append(os.path.join(folder, file))
            else:
                others += 1
    return pictures, others


def open_folder(location: str, split: str, directory: str) -> Source:
    """Opens the pictures below PATH/<split>, or below PATH as the split `train`.

    If all pictures lie in two or more sub-folders, these are the classes, in sorted
    order. The split "" is PATH itself. Files without the extension of a picture are
    skipped. Sets with a layout of their own have the splits of their authors.
    Raises UsageError if the folder is missing or has no pictures, and MissingSplit if
    it lacks the split.
    """
    path = Path(location).expanduser()
    _check_folder(location, path)
    name = f"{path.name}/{split}".rstrip("/")
    # These archives have no folder per split: lists of pictures define their splits.
    for layout in (aircraft, voc):
        root = layout.find(path)
        if root is not None:
            _check_split(split, layout.splits(root), root)
            return from_paths(name, *layout.read(root, split))
    root = _split_root(path, split)
    paths, others = find_pictures(root)
    if not paths:
        kinds = " ".join(sorted(PICTURES))
        raise UsageError(
            f"data.source=folder:{location}: {root} holds no picture ({kinds})."
        )
    if others:
        log.info(
            "folder:%s: %d pictures, %d other files left out",
            location,
            len(paths),
            others,
        )
    if tiny_imagenet.is_here(path):
        return from_paths(name, paths, *tiny_imagenet.label(path, root, paths))
    return from_paths(name, paths, *_label_by_folder(root, paths))


def from_paths(
    name: str, paths: list[str], labels: np.ndarray | None, names: list[str]
) -> Source:
    """A source over picture files, with labels as in Source and class names."""

    def read(i):
        with open(paths[i], "rb") as file:
            return file.read(), label_of(labels, i)

    return Source(
        name=name,
        size=len(paths),
        classes=len(names),
        several=labels is not None and labels.ndim == 2,
        names=tuple(names),
        read=read,
        title=lambda i: paths[i],
        file=lambda i: paths[i],
        images=None,
        labels=labels,
    )


def _check_folder(location: str, path: Path) -> None:
    if not location:
        raise UsageError("data.source=folder: names no folder; write folder:PATH.")
    if not path.is_dir():
        siblings = []
        if path.parent.is_dir():
            siblings = [p.name for p in path.parent.iterdir() if p.is_dir()]
        ending = f"; {nearest(path.name, siblings)}" if siblings else "."
        raise UsageError(
            f"data.source=folder:{location}: there is no such folder{ending}"
        )


def _check_split(split: str, known: list[str], root: Path) -> None:
    if split not in known:
        raise MissingSplit(
            f"data: {root} has no split {split!r}; {nearest(split, known)}"
        )


def _label_by_folder(root: Path, paths: list[str]) -> tuple[np.ndarray | None, list]:
    parts = [os.path.relpath(p, root).split(os.sep) for p in paths]
    names = sorted({p[0] for p in parts})
    # A single folder, or pictures beside the folders, tells nothing about classes.
    if len(names) < 2 or any(len(p) == 1 for p in parts):
        return None, []
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[p[0]] for p in parts]), names


def _split_root(path: Path, split: str) -> Path:
    if (path / split).is_dir():
        return path / split
    held_out = [path / name for name in HELD_OUT if (path / name).is_dir()]
    # Two held-out folders may differ, so neither can stand for a missing third.
    if split in HELD_OUT and len(held_out) == 1:
        return held_out[0]
    # Beside a held-out folder, all of PATH would train on the held-out pictures.
    if split == "train" and not held_out:
        return path
    raise MissingSplit(f"data: {path} has no folder {split}.")
