"""Opens data.source: pictures with random access, from any of several kinds.

tfds:NAME       a TFDS image set prepared as array_record (python -m mixjax.prepare)
folder:PATH     PATH/<split>/... or PATH itself; labels come from class folders, or
                from the archive's files for Tiny-ImageNet, FGVC-Aircraft and VOC
npz:PATH        arrays <split>_image uint8 [N, H, W, C] and, optionally, <split>_label
coco:PATH       pictures with objects, in COCO's format
voc_objects:PATH  PASCAL VOC for detection; splits include the year, such as test2007
ade20k:PATH     pictures with a class for every pixel
digits          1,797 handwritten digits of 8 x 8 pixels, included in this package

A split may be a sum of splits and a selection from it; see mixjax.data.splits.
"""

import zipfile
from pathlib import Path

import numpy as np

from mixjax.data import splits
from mixjax.data.ade20k import open_ade20k
from mixjax.data.coco_objects import open_coco
from mixjax.data.folders import open_folder
from mixjax.data.source import MissingSplit, Source, from_arrays, join
from mixjax.data.tfds_sets import open_tfds
from mixjax.data.voc_objects import open_voc
from mixjax.errors import UsageError, check_name, nearest


def open_source(
    source: str, split: str, directory: str, field: str = "data.split"
) -> Source:
    """Opens `split` of `source`; UsageError says what is missing and where.

    directory: the folder of TFDS sets; "" means TFDS's default ($TFDS_DATA_DIR).
    field: the config field of `split`, for messages.
    """
    kind, _, location = source.partition(":")
    check_name("data.source", kind, KINDS)
    selection = splits.parse(split, field)
    if kind == "tfds":  # TFDS parses sums and slices itself
        opened = open_tfds(location, selection.base, directory)
    else:
        bases = [base.strip() for base in selection.base.split("+")]
        opened = join([KINDS[kind](location, base, directory) for base in bases])
    return splits.take(opened, selection)


def open_digits(location: str, split: str, directory: str) -> Source:
    """Opens the included digits: the first 1,437 are `train`, the last 360 `test`."""
    parts = {"train": slice(0, 1437), "test": slice(1437, 1797)}
    if split not in parts:
        raise MissingSplit(
            f"data: digits has no split {split!r}; {nearest(split, parts)}"
        )
    with np.load(Path(__file__).parent / "digits.npz") as file:
        # The file has grey levels 0 .. 16; int32, since 16 * 255 overflows a byte.
        images = (file["image"][parts[split]].astype(np.int32) * 255 // 16).astype("u1")
        return from_arrays(f"digits/{split}", images, file["label"][parts[split]])


def open_npz(location: str, split: str, directory: str) -> Source:
    """Opens the arrays <split>_image and <split>_label of a .npz file.

    Raises UsageError if the file is missing or damaged or its arrays do not fit, and
    MissingSplit if it has no <split>_image. Pickled objects are refused.
    """
    path = Path(location).expanduser()
    if not path.is_file():
        raise UsageError(f"data.source=npz:{location}: there is no such file.")
    # np.load takes other formats too and reports truncated archives badly.
    if not zipfile.is_zipfile(path):
        raise UsageError(f"data.source=npz:{location} is not a complete .npz file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = _read_arrays(file, path, split)
    except UsageError:
        raise
    except Exception as error:  # zip, zlib and NumPy each raise types of their own
        raise UsageError(
            f"data.source=npz:{location} cannot be read: {error}"
        ) from error
    if images.ndim == 3:  # grey images without a channel axis
        images = images[..., None]  # [N, H, W, 1]
    _check_arrays(images, labels, path, split)
    return from_arrays(f"{path.name}/{split}", images, labels)


def _read_arrays(file, path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    if f"{split}_image" not in file.files:
        known = [k[: -len("_image")] for k in file.files if k.endswith("_image")]
        raise MissingSplit(
            f"data: {path} has no array {split}_image; its splits: "
            f"{', '.join(known) or 'none'}."
        )
    labels = file[f"{split}_label"] if f"{split}_label" in file.files else None
    return file[f"{split}_image"], labels


def _check_arrays(
    images: np.ndarray, labels: np.ndarray | None, path: Path, split: str
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UsageError(
            f"data: {split}_image of {path} is {images.dtype} {images.shape}, "
            f"not uint8 [N, H, W, C]."
        )
    if labels is None:
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(
            f"data: {split}_label of {path} is {labels.dtype} {labels.shape}, "
            f"not integers [N]."
        )
    if len(labels) != len(images):
        raise UsageError(
            f"data: {path} has {len(images)} {split} images but {len(labels)} labels."
        )


KINDS = {
    "tfds": open_tfds,
    "folder": open_folder,
    "npz": open_npz,
    "coco": open_coco,
    "voc_objects": open_voc,
    "ade20k": open_ade20k,
    "digits": open_digits,
}
ANNOTATED = ("coco", "voc_objects", "ade20k")  # sources with boxes or segmentation maps
