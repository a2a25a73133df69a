"""FGVC-Aircraft in the folder layout of its archive (Maji et al., 2013).

data/images/ holds all pictures, data/variants.txt lists the 100 classes, and
data/images_variant_<split>.txt has the class of each picture of a split. As is usual,
the 20 pixels with the photographer's name at the bottom are kept.
"""

from pathlib import Path

import numpy as np

from mixjax.errors import UsageError, nearest

CLASSES, LIST = "variants.txt", "images_variant_"
# The folder itself, or one of the archive's folders above it.
PLACES = ("", "data", "fgvc-aircraft-2013b/data")


def find(path: Path) -> Path | None:
    """The archive's folder `data` at or below `path`, or None if there is none."""
    candidates = (path / place for place in PLACES)
    return next((p for p in candidates if (p / CLASSES).is_file()), None)


def splits(root: Path) -> list[str]:
    """The splits that have a list of pictures; the archive has four."""
    return sorted(p.stem[len(LIST) :] for p in root.glob(f"{LIST}*.txt"))


def read(root: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """(paths, labels [N], class names) of a split.

    Raises UsageError if a picture is missing or its class is not in variants.txt.
    """
    names = (root / CLASSES).read_text().splitlines()
    # Labels follow the order of the file, not that of sorted names.
    names = [name.strip() for name in names if name.strip()]
    number = {name: i for i, name in enumerate(names)}
    file = root / f"{LIST}{split}.txt"
    paths, labels = [], []
    for line in filter(str.strip, file.read_text().splitlines()):
        picture, _, name = line.strip().partition(" ")  # a class may have spaces
        if name.strip() not in number:
            raise UsageError(
                f"data: {file} gives picture {picture} the class {name.strip()!r}, "
                f"which {CLASSES} does not list; {nearest(name, names)}"
            )
        paths.append(str(root / "images" / f"{picture}.jpg"))
        labels.append(number[name.strip()])
    check_pictures_exist(paths, file)
    return paths, np.array(labels), names


def check_pictures_exist(paths: list[str], file: Path) -> None:
    """UsageError unless all `paths`, which `file` lists in one folder, exist."""
    if not paths:
        raise UsageError(f"data: {file} lists no pictures.")
    # One listing of the folder is much faster than a look-up per picture.
    folder = Path(paths[0]).parent
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    missing = [p for p in paths if Path(p).name not in present]
    if missing:
        raise UsageError(
            f"data: pictures listed in {file} are missing ({len(missing)} of "
            f"{len(paths)}), such as {missing[0]}."
        )
