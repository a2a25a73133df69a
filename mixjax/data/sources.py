"""Where pictures come from: random access by number, the same for every kind.

tfds:NAME       a TFDS image set prepared as array_record (python -m mixjax.prepare)
folder:PATH     PATH/<split>/... or PATH itself; class folders give labels, and so do
                the files of some sets' own layouts: Tiny-ImageNet, FGVC-Aircraft, VOC
npz:PATH        arrays <split>_image [N, H, W, C] uint8 and, if any, <split>_label
coco:PATH       pictures with objects, as COCO's files have them
voc_objects:PATH  those of PASCAL VOC, for detection; a split has its year: test2007
ade20k:PATH     pictures with a class for every pixel
digits          1,797 handwritten digits of 8 x 8 pixels, part of this package

A split may be a sum, and a part of one: see splits.
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
    """Opens `split` of data.source; UsageError says what is missing and where.

    directory: where TFDS sets lie; "" is TFDS's own default ($TFDS_DATA_DIR). field:
    what the config calls `split`.
    """
    kind, _, rest = source.partition(":")
    check_name("data.source", kind, KINDS)
    wanted = splits.parse(split, field)
    if kind == "tfds":  # adds and cuts by itself
        return splits.take(open_tfds(rest, wanted.base, directory), wanted)
    bases = [base.strip() for base in wanted.base.split("+")]
    whole = join([KINDS[kind](rest, base, directory) for base in bases])
    return splits.take(whole, wanted)


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


KINDS = {
    "tfds": open_tfds,
    "folder": open_folder,
    "npz": open_npz,
    "coco": open_coco,
    "voc_objects": open_voc,
    "ade20k": open_ade20k,
    "digits": open_digits,
}
ANNOTATED = ("coco", "voc_objects", "ade20k")  # with more than a class
