"""PASCAL VOC in the folder layout of its archives: several classes per picture.

JPEGImages/ holds all pictures. For each of the 20 classes, the file
ImageSets/Main/<class>_<split>.txt has one line per picture of the split: its name and 1
if it shows the class, -1 if it does not, or 0 if it shows only objects of the class
that are marked as difficult, which the challenge's average precision ignores.
"""

from pathlib import Path

import numpy as np

from mixjax.data.aircraft import check_pictures_exist
from mixjax.errors import UsageError

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()
LISTS = Path("ImageSets/Main")
PLACES = ("", "VOC2007", "VOCdevkit/VOC2007")
LABELS = {"1": 1, "-1": 0, "0": -1}  # VOC's labels -> those of Source


def find(path: Path) -> Path | None:
    """The folder VOC2007 at or below `path`, or None if there is none."""
    candidates = (path / place for place in PLACES)
    return next((p for p in candidates if (p / LISTS).is_dir()), None)


def splits(root: Path) -> list[str]:
    """The splits that have a list for any class; `test` is a separate archive."""
    # Files of other names may lie there; only lists of a class count.
    stems = (p.stem.rsplit("_", 1) for p in (root / LISTS).glob("*_*.txt"))
    return sorted({split for name, split in stems if name in CLASSES})


def read(root: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """(paths, labels int8 [N, 20] as in Source, class names) of a split.

    Raises UsageError if a list or a picture is missing, or if the lists of two classes
    differ in their pictures.
    """
    files = [root / LISTS / f"{name}_{split}.txt" for name in CLASSES]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(
            f"data: lists of the split {split!r} are missing ({len(missing)} of "
            f"{len(CLASSES)}), such as {missing[0]}."
        )
    lists = [_read_list(file) for file in files]
    for file, labels in zip(files, lists, strict=True):
        # In order, too: the labels below are stacked by position.
        if list(labels) != list(lists[0]):
            raise UsageError(f"data: {file} and {files[0]} list different pictures.")
    paths = [str(root / "JPEGImages" / f"{name}.jpg") for name in lists[0]]
    check_pictures_exist(paths, files[0])
    columns = [list(labels.values()) for labels in lists]  # [20, N]
    return paths, np.array(columns, np.int8).T, CLASSES  # [N, 20]


def _read_list(file: Path) -> dict[str, int]:
    """{picture's name: label}, in the order of the file."""
    labels = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in LABELS:
            raise UsageError(
                f"data: line {number} of {file} must be a picture's name and 1, 0 or "
                f"-1, not {line.strip()!r}."
            )
        labels[words[0]] = LABELS[words[1]]
    return labels
