"""PASCAL VOC in the folders that its archives make: several classes per picture.

JPEGImages/ holds all pictures. For each of 20 classes, ImageSets/Main/<class>_<split>
.txt has a line per picture of the split: its name and 1 if it shows the class, -1 if it
does not, or 0 if it does but only in objects marked as difficult, which the average
precision of the challenge leaves out.
"""

from pathlib import Path

import numpy as np

from mixjax.data.aircraft import check_there
from mixjax.errors import UsageError

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()
LISTS = Path("ImageSets/Main")
PLACES = ("", "VOC2007", "VOCdevkit/VOC2007")
LABELS = {"1": 1, "-1": 0, "0": -1}  # as Source has them


def find(path: Path) -> Path | None:
    """The folder VOC2007 at or below `path`; None if it is not there."""
    places = (path / place for place in PLACES)
    return next((p for p in places if (p / LISTS).is_dir()), None)


def splits(root: Path) -> list[str]:
    """Those with the list of any class: `test` comes in an archive of its own."""
    stems = (p.stem.rsplit("_", 1) for p in (root / LISTS).glob("*_*.txt"))
    return sorted({split for name, split in stems if name in CLASSES})


def read(root: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """(paths, labels int8 [N, 20], classes) of a split; labels as Source has them.

    UsageError if a list or a picture is not there, or lists do not go together.
    """
    files = [root / LISTS / f"{name}_{split}.txt" for name in CLASSES]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(
            f"data: {len(missing)} of the {len(CLASSES)} lists of {split} are not "
            f"there, the first of them {missing[0]}."
        )
    lists = [_read_list(file) for file in files]
    for file, found in zip(files, lists, strict=True):
        if list(found) != list(lists[0]):
            raise UsageError(f"data: {file} and {files[0]} name other pictures.")
    paths = [str(root / "JPEGImages" / f"{name}.jpg") for name in lists[0]]
    check_there(paths, files[0])
    columns = [list(found.values()) for found in lists]
    return paths, np.array(columns, np.int8).T, CLASSES  # [N, 20]


def _read_list(file: Path) -> dict[str, int]:
    """{picture: label}, in the file's order."""
    labels = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in LABELS:
            raise UsageError(
                f"data: line {number} of {file} is no picture and 1, 0 or -1."
            )
        labels[words[0]] = LABELS[words[1]]
    return labels
