"""Where pictures come from: random access by number, the same for every kind.

tfds:NAME       a TFDS image set prepared as array_record (python -m mixjax.prepare)
folder:PATH     PATH/<split>/... or PATH itself; class folders give labels, and so do
                the files of Tiny-ImageNet's own layout
npz:PATH        arrays <split>_image [N, H, W, C] uint8 and, if any, <split>_label
digits          1,797 handwritten digits of 8 x 8 pixels, part of this package
"""

import difflib
import logging
import os
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixjax.data import tiny_imagenet
from mixjax.errors import UsageError, check_name, nearest

log = logging.getLogger("mixjax")
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}
SAME_SPLIT = ("test", "val", "validation")  # folders name the held-out part so


class Source(NamedTuple):
    """Pictures by number."""

    name: str
    size: int
    classes: int  # 0: no labels
    read: Callable  # i -> (bytes of a file or array uint8, label; -1 if none)
    title: Callable  # i -> what to call example i in a message
    images: np.ndarray | None  # all of them, where they are in memory already
    labels: np.ndarray | None


def open_source(source: str, split: str, directory: str) -> Source:
    """Opens `split` of data.source; UsageError says what is missing and where.

    directory: where TFDS sets lie; "" is TFDS's own default ($TFDS_DATA_DIR).
    """
    kind, _, rest = source.partition(":")
    check_name("data.source", kind, KINDS)
    return KINDS[kind](rest, split, directory)


class MissingSplit(UsageError):
    """The source is there, this split of it is not."""


# --- arrays ----------------------------------------------------------------------


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray | None) -> Source:
    """A source over arrays in memory: uint8 [N, H, W, C] and labels [N] or None."""
    classes = 0 if labels is None or not len(labels) else int(labels.max()) + 1
    return Source(
        name=name,
        size=len(images),
        classes=classes,
        read=lambda i: (images[i], -1 if labels is None else int(labels[i])),
        title=lambda i: f"{name}, example {i}",
        images=images,
        labels=labels,
    )


def subset(source: Source, places: np.ndarray) -> Source:
    """The examples of `source` at `places`, in that order."""
    images, labels = source.images, source.labels
    return source._replace(
        name=f"{source.name}[{len(places)}]",
        size=len(places),
        read=lambda i: source.read(int(places[i])),
        title=lambda i: source.title(int(places[i])),
        images=None if images is None else images[places],
        labels=None if labels is None else labels[places],
    )


def open_digits(rest: str, split: str, directory: str) -> Source:
    """The first 1,437 digits are `train`, the last 360 `test`."""
    parts = {"train": slice(0, 1437), "test": slice(1437, 1797)}
    if split not in parts:
        raise MissingSplit(
            f"data: digits has no split {split!r}; {nearest(split, parts)}"
        )
    with np.load(Path(__file__).parent / "digits.npz") as file:
        # Sixteen grey levels in the file become 0 .. 255.
        images = (file["image"][parts[split]].astype(np.int32) * 255 // 16).astype("u1")
        return from_arrays(f"digits/{split}", images, file["label"][parts[split]])


def open_npz(rest: str, split: str, directory: str) -> Source:
    """Arrays <split>_image and <split>_label of a .npz file (never unpickled)."""
    path = Path(rest).expanduser()
    if not path.is_file():
        raise UsageError(f"data.source=npz:{rest}: there is no such file.")
    if not zipfile.is_zipfile(path):
        raise UsageError(
            f"data.source=npz:{rest} is not a .npz file, or not all of it."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            if f"{split}_image" not in file.files:
                splits = [
                    k[: -len("_image")] for k in file.files if k.endswith("_image")
                ]
                known = f"its splits: {', '.join(splits) or 'none'}."
                raise MissingSplit(f"data: {path} has no array {split}_image; {known}")
            images = file[f"{split}_image"]
            has_labels = f"{split}_label" in file.files
            labels = file[f"{split}_label"] if has_labels else None
    except UsageError:
        raise
    except Exception as error:  # zip, zlib and NumPy each raise their own kinds
        raise UsageError(f"data.source=npz:{rest} cannot be read: {error}") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UsageError(
            f"data: {split}_image of {path} is {images.dtype} {images.shape}, "
            f"not uint8 [N, H, W, C]."
        )
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise UsageError(
            f"data: {split}_label of {path} is {labels.dtype} {labels.shape}, "
            f"not whole numbers [N]."
        )
    if labels is not None and len(labels) != len(images):
        raise UsageError(
            f"data: {path} has {len(images)} {split} images but {len(labels)} labels."
        )
    return from_arrays(f"{path.name}/{split}", images, labels)


# --- folders ---------------------------------------------------------------------


def find_pictures(root: Path) -> tuple[list[str], int]:
    """All pictures below `root`, sorted, and how many other files lie there.

    Links are followed, but no folder is entered twice; hidden files do not count.
    """
    found, others, seen = [], 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(f for f in files if not f.startswith(".")):
            if os.path.splitext(file)[1].lower() in PICTURES:
                found.append(os.path.join(folder, file))
            else:
                others += 1
    return found, others


def open_folder(rest: str, split: str, directory: str) -> Source:
    """Picture files below PATH/<split>, or below PATH as the split `train`.

    If all pictures lie in two or more sub-folders, these are the classes, in sorted
    order. Files that are no pictures by their name are left out. Tiny-ImageNet as
    its archive unpacks is known by its wnids.txt; its splits are `train` and `val`.
    """
    path = Path(rest).expanduser()
    if not rest:
        raise UsageError("data.source=folder: names no folder; write folder:PATH.")
    if not path.is_dir():
        near = ""
        if path.parent.is_dir():
            siblings = [p.name for p in path.parent.iterdir() if p.is_dir()]
            near = " " + nearest(path.name, siblings) if siblings else ""
        raise UsageError(f"data.source=folder:{rest}: there is no such folder.{near}")
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
        labels, classes = tiny_imagenet.label(path, root, paths)
    else:
        labels, classes = _label_by_folder(root, paths)

    def read(i):
        with open(paths[i], "rb") as file:
            return file.read(), -1 if labels is None else int(labels[i])

    return Source(
        name=f"{path.name}/{split}",
        size=len(paths),
        classes=classes,
        read=read,
        title=lambda i: paths[i],
        images=None,
        labels=labels,
    )


def _label_by_folder(root: Path, paths: list[str]) -> tuple[np.ndarray | None, int]:
    tops = [os.path.relpath(p, root).split(os.sep) for p in paths]
    names = sorted({t[0] for t in tops})
    if len(names) < 2 or any(len(t) == 1 for t in tops):
        return None, 0
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[t[0]] for t in tops]), len(names)


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


# --- TFDS ------------------------------------------------------------------------


def open_tfds(rest: str, split: str, directory: str) -> Source:
    """A prepared TFDS set, read without TensorFlow; pictures stay encoded."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            "data.source=tfds:... needs the package tensorflow-datasets."
        ) from error
    where = {"data_dir": directory} if directory else {}
    try:
        builder = tfds.builder(rest, try_gcs=False, **where)
    except Exception as error:  # TFDS raises its own kinds, and imports of the set's
        reason = str(error).strip().splitlines()[0]
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(rest, known)
        near = f"; {nearest(rest, close)}" if close else "."
        reason = reason.rstrip(".") + near
        raise UsageError(f"data.source=tfds:{rest}: {reason}") from error
    if not builder.is_prepared():
        raise UsageError(
            f"data.source=tfds:{rest} is not prepared in {builder.data_dir}; "
            f"run: {_prepare(rest, data_dir=directory)}"
        )
    formats = [f.value for f in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise UsageError(_how_to_rewrite(rest, builder, formats))
    for part in split.split("+"):  # such as train+unlabelled[:50%]
        base = part.split("[")[0].strip()
        if base not in builder.info.splits:
            splits = nearest(base, builder.info.splits)
            raise MissingSplit(f"data: tfds:{rest} has no split {base!r}; {splits}")
    features = builder.info.features
    image = next((k for k, f in features.items() if _is_image(tfds, f)), None)
    if image is None:
        raise UsageError(
            f"data.source=tfds:{rest} has no image among {list(features)}."
        )
    label = next((k for k, f in features.items() if _is_label(tfds, f)), None)
    try:
        records = builder.as_data_source(
            split, decoders={image: tfds.decode.SkipDecoding()}
        )
    except ValueError as error:  # a slice that is empty, too long, or no slice
        reason = str(error).splitlines()[-1]
        raise UsageError(f"data: split {split!r} of tfds:{rest}: {reason}") from error

    def read(i):
        record = records[i]
        return bytes(record[image]), -1 if label is None else int(record[label])

    return Source(
        name=f"{rest}/{split}",
        size=len(records),
        classes=0 if label is None else features[label].num_classes,
        read=read,
        title=lambda i: f"{rest}/{split}, example {i}",
        images=None,
        labels=None,
    )


def _prepare(name: str, **flags) -> str:
    given = [f"--{k}={shlex.quote(str(v))}" for k, v in flags.items() if v]
    return " ".join(["python -m mixjax.prepare", name, *given])


def _how_to_rewrite(name: str, builder, formats: list[str]) -> str:
    """What to say of a set that lies there in a form without random access."""
    copy = Path(builder.data_dir)  # <folder of sets>/<set>/[<config>/]<version>
    folder = copy.parents[builder.info.full_name.count("/")]
    other = folder.with_name(f"{folder.name}-array_record")
    form = ", ".join(formats) or "tfrecord"
    # Only TFRecord files can be re-written; other forms are downloaded anew.
    source = copy if form == "tfrecord" else ""
    return (
        f"data.source=tfds:{name} was prepared in {copy} as {form}, which has no "
        f"random access; set data.directory={other} and run: "
        f"{_prepare(name, from_dir=source, data_dir=other)}"
    )


def _is_image(tfds, feature) -> bool:
    return isinstance(feature, tfds.features.Image)


def _is_label(tfds, feature) -> bool:
    return isinstance(feature, tfds.features.ClassLabel)


KINDS = {
    "tfds": open_tfds,
    "folder": open_folder,
    "npz": open_npz,
    "digits": open_digits,
}
