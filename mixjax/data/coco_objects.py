"""COCO's annotation files of objects (Lin et al., 2014) as sources of scenes.

coco:PATH is a folder with annotations/instances_<split>.json and the pictures in
<split>/, as the archives make it; or a folder with one annotations.json and images/,
of which `train` and `val` are both the whole, and train2017 and val2017 the images
whose entry says "split": "train" or "val", where entries do.

Categories in the order of their numbers become classes 0 .. K - 1; those with
"isthing": 0 are left out. Objects without an area, and without an outline where others
have one, are left out too, also of what is scored.
"""

from pathlib import Path

import numpy as np

from mixjax.data.coco_file import load
from mixjax.data.scenes import together
from mixjax.data.source import MissingSplit, Source, all_labels, subset
from mixjax.errors import UsageError, nearest

STEM, FLAT = "instances_", "annotations.json"
WHOLE = ("train", "val")
CHOSEN = {"train2017": "train", "val2017": "val"}  # of a file for several splits


def open_coco(rest: str, split: str, directory: str) -> Source:
    """Pictures and their Objects, in the order of the pictures' numbers.

    Its `labels` are all Objects, known without reading a picture. UsageError says in a
    sentence what is missing or broken, with the file and the entry.
    """
    file, folder, only = _find(rest, split)
    annotations = load(file)
    places = [i for i, s in enumerate(annotations.splits) if only is None or s == only]
    if not places:
        raise MissingSplit(f"data: {file} has no image of the split {split!r}.")
    names = [annotations.pictures[i] for i in places]
    _check_pictures(file, folder, names)
    paths = [str(folder / name) for name in names]
    labels = together([annotations.objects[i] for i in places])
    return from_scenes(f"{Path(rest).name}/{split}", paths, labels, annotations.names)


def from_scenes(
    name: str, paths: list[str], labels: np.ndarray, names: tuple[str, ...]
) -> Source:
    """A source over files with their Objects [N], and the names of the classes."""

    def read(i):
        with open(paths[i], "rb") as file:
            return file.read(), labels[i]

    return Source(
        name=name,
        size=len(paths),
        classes=len(names),
        several=False,
        names=tuple(names),
        read=read,
        title=lambda i: paths[i],
        file=lambda i: paths[i],
        images=None,
        labels=labels,
    )


def category_ids(rest: str, split: str) -> tuple[int, ...]:
    """The file's own number of each class, for what is written out.

    split: as in the config; of a sum the first, without what follows a bar.
    """
    base = split.partition("|")[0].partition("+")[0].strip()
    return load(_find(rest, base)[0]).category_ids


def for_training(source: Source) -> Source:
    """The pictures of `source` that show an object outside crowds.

    UsageError if there are none.
    """
    known = all_labels(source)
    places = [i for i, found in enumerate(known) if not found.crowd.all()]
    if not places:
        raise UsageError(f"data: no picture of {source.name} shows an object.")
    return subset(source, np.array(places))._replace(name=source.name)


def _find(rest: str, split: str) -> tuple[Path, Path, str | None]:
    """(annotation file, folder of pictures, which entries: None is all)."""
    path = Path(rest).expanduser()
    if not rest or not path.is_dir():
        raise UsageError(f"data.source=coco:{rest}: there is no such folder.")
    if (path / FLAT).is_file():
        if split not in (*WHOLE, *CHOSEN):
            raise MissingSplit(
                f"data: {path} has no split {split!r}; "
                f"{nearest(split, (*WHOLE, *CHOSEN))}"
            )
        return path / FLAT, path / "images", CHOSEN.get(split)
    file = path / "annotations" / f"{STEM}{split}.json"
    if not file.is_file():
        there = [p.stem[len(STEM) :] for p in file.parent.glob(f"{STEM}*.json")]
        if not there:
            raise UsageError(
                f"data.source=coco:{rest}: the folder has neither {FLAT} nor "
                f"annotations/{STEM}<split>.json."
            )
        raise MissingSplit(
            f"data: {path} has no split {split!r}; {nearest(split, there)}"
        )
    return file, path / split, None


def _check_pictures(file: Path, folder: Path, names: list[str]) -> None:
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in names if name not in there]
    if missing:
        raise UsageError(
            f"data: {file} names {len(missing)} pictures that are not in {folder}, "
            f"the first of them {missing[0]}."
        )
