"""Pictures in folders, and what tells their classes.

Class folders give labels. Some sets come in a layout of their own, which is known by
its files: Tiny-ImageNet, FGVC-Aircraft and PASCAL VOC, each a module here.
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
SAME_SPLIT = ("test", "val", "validation")  # folders name the held-out part so


def find_pictures(root: Path) -> tuple[list[str], int]:
    """All pictures below `root`, sorted, and how many other files lie there.

    Links are followed, but no folder is entered twice; hidden files do not count.
    """
    pictures, others, visited = [], 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(f for f in files if not f.startswith(".")):
            if os.path.splitext(file)[1].lower() in PICTURES:
                pictures.append(os.path.join(folder, file))
            else:
                others += 1
    return pictures, others


def open_folder(rest: str, split: str, directory: str) -> Source:
    """Picture files below PATH/<split>, or below PATH as the split `train`.

    If all pictures lie in two or more sub-folders, these are the classes, in sorted
    order; "" as split is PATH itself. Files that are no pictures by their name are
    left out. Sets in a layout of their own have the splits of their authors.
    """
    path = Path(rest).expanduser()
    _check_folder(rest, path)
    name = f"{path.name}/{split}".rstrip("/")
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
            f"data.source=folder:{rest}: {root} holds no picture ({kinds})."
        )
    if others:
        log.info(
            "folder:%s: %d pictures, %d other files left out", rest, len(paths), others
        )
    if tiny_imagenet.is_here(path):
        return from_paths(name, paths, *tiny_imagenet.label(path, root, paths))
    return from_paths(name, paths, *_label_by_folder(root, paths))


def from_paths(
    name: str, paths: list[str], labels: np.ndarray | None, names: list[str]
) -> Source:
    """A source over files. labels: see Source; names: of the classes."""

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


def _check_folder(rest: str, path: Path) -> None:
    if not rest:
        raise UsageError("data.source=folder: names no folder; write folder:PATH.")
    if not path.is_dir():
        near = ""
        if path.parent.is_dir():
            siblings = [p.name for p in path.parent.iterdir() if p.is_dir()]
            near = " " + nearest(path.name, siblings) if siblings else ""
        raise UsageError(f"data.source=folder:{rest}: there is no such folder.{near}")


def _check_split(split: str, there: list[str], root: Path) -> None:
    if split not in there:
        raise MissingSplit(
            f"data: {root} has no split {split!r}; {nearest(split, there)}"
        )


def _label_by_folder(root: Path, paths: list[str]) -> tuple[np.ndarray | None, list]:
    tops = [os.path.relpath(p, root).split(os.sep) for p in paths]
    names = sorted({t[0] for t in tops})
    if len(names) < 2 or any(len(t) == 1 for t in tops):
        return None, []
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[t[0]] for t in tops]), names


def _split_root(path: Path, split: str) -> Path:
    if (path / split).is_dir():
        return path / split
    if split in SAME_SPLIT:
        there = [path / name for name in SAME_SPLIT if (path / name).is_dir()]
        if len(there) == 1:
            return there[0]
    if split == "train" and not any((path / s).is_dir() for s in SAME_SPLIT):
        return path
    raise MissingSplit(f"data: {path} has no folder {split}.")
