"""COCO's annotation files of objects (Lin et al., 2014) as sources of scenes.

coco:PATH is a folder with annotations/instances_<split>.json and the pictures in
<split>/, as the official archives unpack; or a folder with one annotations.json and
images/. In the latter, `train` and `val` both mean all images, and `train2017` and
`val2017` mean those whose entry has "split": "train" or "val".

Categories, sorted by id, become classes 0 .. K - 1; those with "isthing": 0 are
skipped. Objects without area are skipped too, as are objects without an outline if
others have one; skipped objects do not count in the evaluation either.
"""

from pathlib import Path

import numpy as np

from mixjax.data.coco_file import load
from mixjax.data.scenes import object_array
from mixjax.data.source import MissingSplit, Source, all_labels, subset
from mixjax.errors import UsageError, nearest

STEM, FLAT = "instances_", "annotations.json"
ALL_IMAGES = ("train", "val")
SPLIT_KEYS = {"train2017": "train", "val2017": "val"}  # "split" of an image's entry


def open_coco(path: str, split: str, directory: str) -> Source:
    """Opens pictures with their Objects, sorted by image id.

    The source's `labels` hold all Objects, so none needs a picture to be read.
    Raises UsageError if something is missing or malformed, naming file and entry.
    """
    file, folder, split_key = _find_files(path, split)
    annotations = load(file)
    indices = [
        i
        for i, image_split in enumerate(annotations.splits)
        if split_key is None or image_split == split_key
    ]
    if not indices:
        raise MissingSplit(f"data: {file} lists no image of split {split!r}.")
    file_names = [annotations.file_names[i] for i in indices]
    _check_pictures(file, folder, file_names)
    paths = [str(folder / name) for name in file_names]
    labels = object_array([annotations.objects[i] for i in indices])
    name = f"{Path(path).name}/{split}"
    return from_scenes(name, paths, labels, annotations.class_names)


def from_scenes(
    name: str, paths: list[str], labels: np.ndarray, class_names: tuple[str, ...]
) -> Source:
    """A source of picture files with their Objects, labels [N] of dtype object."""

    def read(i):
        with open(paths[i], "rb") as file:
            return file.read(), labels[i]

    return Source(
        name=name,
        size=len(paths),
        classes=len(class_names),
        several=False,
        names=tuple(class_names),
        read=read,
        title=lambda i: paths[i],
        file=lambda i: paths[i],
        images=None,
        labels=labels,
    )


def category_ids(path: str, split: str) -> tuple[int, ...]:
    """COCO's id of each class, which result files must use.

    split: as in the config. Of a sum only the first split counts, without the
    selection after a bar, since all parts must have the same classes.
    """
    first_split = split.partition("|")[0].partition("+")[0].strip()
    return load(_find_files(path, first_split)[0]).category_ids


def for_training(source: Source) -> Source:
    """The pictures of `source` with at least one object outside crowds.

    Raises UsageError if there are none.
    """
    annotations = all_labels(source)
    # all() of an empty array is true, so pictures without objects are dropped too.
    indices = [i for i, o in enumerate(annotations) if not o.crowd.all()]
    if not indices:
        raise UsageError(
            f"data: no picture of {source.name} contains an object outside crowds."
        )
    return subset(source, np.array(indices))._replace(name=source.name)


def _find_files(path: str, split: str) -> tuple[Path, Path, str | None]:
    """(annotation file, folder of pictures, required "split" of entries or None)."""
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UsageError(f"data.source=coco:{path}: there is no such folder.")
    if (root / FLAT).is_file():
        splits = (*ALL_IMAGES, *SPLIT_KEYS)
        if split not in splits:
            raise MissingSplit(
                f"data: {root} has no split {split!r}; {nearest(split, splits)}"
            )
        return root / FLAT, root / "images", SPLIT_KEYS.get(split)
    file = root / "annotations" / f"{STEM}{split}.json"
    if not file.is_file():
        splits = [p.stem[len(STEM) :] for p in file.parent.glob(f"{STEM}*.json")]
        if not splits:
            raise UsageError(
                f"data.source=coco:{path}: the folder has neither {FLAT} nor "
                f"annotations/{STEM}<split>.json."
            )
        raise MissingSplit(
            f"data: {root} has no split {split!r}; {nearest(split, splits)}"
        )
    return file, root / split, None


def _check_pictures(file: Path, folder: Path, file_names: list[str]) -> None:
    # One listing of the folder, since 100,000 calls of is_file() are slow on a network
    # disk. It also refuses names that lead out of the folder.
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in file_names if name not in present]
    if missing:
        raise UsageError(
            f"data: {file} lists {len(missing)} pictures that are not in {folder}, "
            f"the first being {missing[0]}."
        )
