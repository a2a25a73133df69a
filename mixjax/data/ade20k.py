"""ADE20K's scene parsing pictures (Zhou et al., 2017): a class for every pixel.

ade20k:PATH is ADEChallengeData2016 or the folder above it, with images/<split>/ and
annotations/<split>/, splits training and validation, or train and val for short; or a
flat folder of pairs NAME.jpg and NAME.png, of which every split is the whole.

The files say 0 for what belongs to no class and k for class k - 1; here 255 is ignored
and classes are 0 .. 149.
"""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mixjax.data.decode import Unreadable
from mixjax.data.scenes import IGNORED, Map
from mixjax.data.source import MissingSplit, Source
from mixjax.errors import UsageError, nearest

CLASSES = 150
SPLITS = {"train": "training", "val": "validation"}
PLACES = ("", "ADEChallengeData2016")


def open_ade20k(rest: str, split: str, directory: str) -> Source:
    """Pictures and their Map, read when asked for, in the order of their names.

    UsageError if the folder, a split or a label map is not there.
    """
    path = Path(rest).expanduser()
    if not rest or not path.is_dir():
        raise UsageError(f"data.source=ade20k:{rest}: there is no such folder.")
    pictures, maps = _find(path, split)
    names = sorted(p.stem for p in pictures.glob("*.jpg"))
    if not names:
        raise UsageError(f"data.source=ade20k:{rest}: {pictures} holds no .jpg.")
    there = {p.stem for p in maps.glob("*.png")}
    missing = [name for name in names if name not in there]
    if missing:
        raise UsageError(
            f"data: {len(missing)} of the {len(names)} pictures of {pictures} have no "
            f"label map, the first of them {maps / missing[0]}.png."
        )

    def read(i):
        picture = (pictures / f"{names[i]}.jpg").read_bytes()
        return picture, read_map(maps / f"{names[i]}.png")

    return Source(
        name=f"{path.name}/{split}",
        size=len(names),
        classes=CLASSES,
        several=False,
        names=_class_names(path),
        read=read,
        title=lambda i: str(pictures / f"{names[i]}.jpg"),
        file=lambda i: str(pictures / f"{names[i]}.jpg"),
        images=None,
        labels=None,
    )


def _find(path: Path, split: str) -> tuple[Path, Path]:
    """The folders of the pictures and of the label maps."""
    known = (*SPLITS, *SPLITS.values())
    if split not in known:
        raise MissingSplit(
            f"data: {path} has no split {split!r}; {nearest(split, known)}"
        )
    folder = SPLITS.get(split, split)
    for root in (path / place for place in PLACES):
        if (root / "images").is_dir():
            pair = root / "images" / folder, root / "annotations" / folder
            lacking = [str(p) for p in pair if not p.is_dir()]
            if lacking:
                raise MissingSplit(f"data: there is no folder {lacking[0]}.")
            return pair
    return path, path


def _class_names(path: Path) -> tuple[str, ...]:
    """From objectInfo150.txt or classes.json, where one is there; else ()."""
    for root in (path / place for place in PLACES):
        table, listed = root / "objectInfo150.txt", root / "classes.json"
        if table.is_file():
            lines = table.read_text().splitlines()[1:]  # the first names the columns
            names = [line.split("\t")[-1].strip() for line in lines if line.strip()]
        elif listed.is_file():
            names_by_number = json.loads(listed.read_text())
            names = [names_by_number.get(str(k), "") for k in range(1, CLASSES + 1)]
        else:
            continue
        if len(names) == CLASSES and all(names):
            return tuple(names)
    return ()


def reduce_zero_label(labels: np.ndarray) -> np.ndarray:
    """uint8: 0 -> 255, k -> k - 1, and 255 stays."""
    return np.where(labels == IGNORED, IGNORED, labels - np.uint8(1)).astype(np.uint8)


def read_map(file: Path) -> Map:
    """A label map of the set.

    Unreadable if the file is not a whole picture; UsageError if it is no label map.
    """
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            labels = np.asarray(image)
    except Exception as error:  # decoders raise nearly everything on bad bytes
        raise Unreadable(f"{file}: {error}") from error
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise UsageError(
            f"data: {file} is {labels.dtype} {labels.shape}, not a label map, "
            f"uint8 [H, W]."
        )
    labels = reduce_zero_label(labels)
    wrong = labels[(labels >= CLASSES) & (labels != IGNORED)]
    if wrong.size:
        raise UsageError(
            f"data: {file} holds {int(wrong[0]) + 1}, but the largest class is "
            f"{CLASSES}."
        )
    return Map(labels, file.stem)
