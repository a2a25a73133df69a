"""ADE20K for scene parsing (Zhou et al., 2017): pictures with a class per pixel.

ade20k:PATH is ADEChallengeData2016 or the folder above it, with images/<split>/ and
annotations/<split>/ for the splits training and validation (train and val for short);
or a flat folder of pairs NAME.jpg and NAME.png, all of which belong to every split.

In the files, 0 means no class and k means class k - 1; here classes are 0 .. 149 and
255 is ignored.
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


def open_ade20k(path: str, split: str, directory: str) -> Source:
    """Opens pictures with their Map, sorted by name; maps are read on demand.

    Raises UsageError if the folder, the split or a label map is missing.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UsageError(f"data.source=ade20k:{path}: there is no such folder.")
    pictures, maps = _find_folders(root, split)
    names = sorted(p.stem for p in pictures.glob("*.jpg"))
    if not names:
        raise UsageError(
            f"data.source=ade20k:{path}: {pictures} contains no .jpg files."
        )
    map_names = {p.stem for p in maps.glob("*.png")}
    missing = [name for name in names if name not in map_names]
    if missing:
        raise UsageError(
            f"data: {len(missing)} of the {len(names)} pictures of {pictures} have no "
            f"label map, the first missing file being {maps / missing[0]}.png."
        )

    def read(i):
        picture = (pictures / f"{names[i]}.jpg").read_bytes()
        return picture, read_map(maps / f"{names[i]}.png")

    return Source(
        name=f"{root.name}/{split}",
        size=len(names),
        classes=CLASSES,
        several=False,
        names=_class_names(root),
        read=read,
        title=lambda i: str(pictures / f"{names[i]}.jpg"),
        file=lambda i: str(pictures / f"{names[i]}.jpg"),
        images=None,
        labels=None,
    )


def _find_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders of the pictures and of the label maps."""
    split_names = (*SPLITS, *SPLITS.values())
    if split not in split_names:
        raise MissingSplit(
            f"data: {root} has no split {split!r}; {nearest(split, split_names)}"
        )
    folder = SPLITS.get(split, split)
    for base in (root / place for place in PLACES):
        if (base / "images").is_dir():
            folders = base / "images" / folder, base / "annotations" / folder
            missing = [str(p) for p in folders if not p.is_dir()]
            if missing:
                raise MissingSplit(f"data: the folder {missing[0]} does not exist.")
            return folders
    return root, root  # flat: pairs of files side by side


def _class_names(root: Path) -> tuple[str, ...]:
    """The names in objectInfo150.txt or classes.json; () without a complete list."""
    for base in (root / place for place in PLACES):
        table, numbered = base / "objectInfo150.txt", base / "classes.json"
        if table.is_file():
            lines = table.read_text().splitlines()[1:]  # without the header
            names = [line.split("\t")[-1].strip() for line in lines if line.strip()]
        elif numbered.is_file():
            names_by_number = json.loads(numbered.read_text())
            names = [names_by_number.get(str(k), "") for k in range(1, CLASSES + 1)]
        else:
            continue
        if len(names) == CLASSES and all(names):
            return tuple(names)
    return ()


def reduce_zero_label(labels: np.ndarray) -> np.ndarray:
    """uint8: 0 -> 255, k -> k - 1, and 255 stays; named as in mmsegmentation."""
    return np.where(labels == IGNORED, IGNORED, labels - np.uint8(1)).astype(np.uint8)


def read_map(file: Path) -> Map:
    """Reads one label map.

    Raises Unreadable if the file is not an intact image, and UsageError if the image is
    not a label map.
    """
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            labels = np.asarray(image)
    except Exception as error:  # decoders raise nearly everything on bad bytes
        raise Unreadable(f"{file}: {error}") from error
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise UsageError(
            f"data: {file} is {labels.dtype} {labels.shape}, not a label map, "
            f"which would be uint8 [H, W]."
        )
    labels = reduce_zero_label(labels)
    unknown = labels[(labels >= CLASSES) & (labels != IGNORED)]
    if unknown.size:
        raise UsageError(
            f"data: {file} contains label {int(unknown[0]) + 1}, but the largest is "
            f"{CLASSES}."
        )
    return Map(labels, file.stem)
