"""FGVC-Aircraft in the folders that its archive makes (Maji et al., 2013).

data/images/ holds all pictures, data/variants.txt names the 100 classes, and
data/images_variant_<split>.txt tells the class of each picture of a split. The strip
with the photographer's name, 20 pixels at the bottom, stays, as is usual.
"""

from pathlib import Path

import numpy as np

from mixjax.errors import UsageError, nearest

CLASSES, LIST = "variants.txt", "images_variant_"
PLACES = ("", "data", "fgvc-aircraft-2013b/data")


def find(path: Path) -> Path | None:
    """The folder `data` of the archive at or below `path`; None if it is not there."""
    places = (path / place for place in PLACES)
    return next((p for p in places if (p / CLASSES).is_file()), None)


def splits(root: Path) -> list[str]:
    """Those whose list is there; all four in the archive."""
    return sorted(p.stem[len(LIST) :] for p in root.glob(f"{LIST}*.txt"))


def read(root: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """(paths, labels [N], classes) of a split.

    UsageError if a picture is not there, or a class is not listed.
    """
    names = (root / CLASSES).read_text().splitlines()
    names = [name.strip() for name in names if name.strip()]
    number = {name: i for i, name in enumerate(names)}
    file = root / f"{LIST}{split}.txt"
    paths, labels = [], []
    for line in filter(str.strip, file.read_text().splitlines()):
        picture, _, name = line.strip().partition(" ")  # names have spaces too
        if name.strip() not in number:
            raise UsageError(
                f"data: {file} has a picture {picture} of class {name.strip()!r}, "
                f"which {CLASSES} does not list; {nearest(name, names)}"
            )
        paths.append(str(root / "images" / f"{picture}.jpg"))
        labels.append(number[name.strip()])
    check_there(paths, file)
    return paths, np.array(labels), names


def check_there(paths: list[str], file: Path) -> None:
    """UsageError unless all pictures that `file` lists are there, in one folder."""
    if not paths:
        raise UsageError(f"data: {file} names no picture.")
    folder = Path(paths[0]).parent
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    missing = [p for p in paths if Path(p).name not in there]
    if missing:
        raise UsageError(
            f"data: {file} names {len(missing)} pictures that are not there, the first "
            f"of them {missing[0]}."
        )
