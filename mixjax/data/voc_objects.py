"""PASCAL VOC's objects, in the folders of its archives, as sources of scenes.

voc_objects:PATH is VOCdevkit, the folder above it, or VOC2007 (VOC2012) itself. A split
is the name of a list in ImageSets/Main followed by the year, such as trainval2007 or
trainval2007+trainval2012. If PATH is the folder of one year, the year may be omitted.

VOC counts pixels from 1 and includes both ends of a box, so that in continuous
coordinates a box is (xmin - 1, ymin - 1, xmax, ymax). Difficult objects are kept and
marked as such.
"""

import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

from mixjax.data.aircraft import check_pictures_exist
from mixjax.data.coco_objects import from_scenes
from mixjax.data.scenes import Objects, object_array, objects
from mixjax.data.source import MissingSplit, Source
from mixjax.data.voc import CLASSES, LISTS
from mixjax.errors import UsageError, check_name, nearest

PLACES = ("VOC{}", "VOCdevkit/VOC{}")
SIDES = ("xmin", "ymin", "xmax", "ymax")


def open_voc(path: str, split: str, directory: str) -> Source:
    """Opens pictures with their Objects, in the order of the split's list.

    Reads all annotations at once: the source's `labels` hold all Objects. Raises
    UsageError if a file is missing or malformed, naming the file.
    """
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise UsageError(f"data.source=voc_objects:{path}: there is no such folder.")
    root, list_name = _find_list(folder, split)
    file = root / LISTS / f"{list_name}.txt"
    stems = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    paths = [str(root / "JPEGImages" / f"{stem}.jpg") for stem in stems]
    check_pictures_exist(paths, file)
    annotations = [read_xml(root / "Annotations" / f"{stem}.xml") for stem in stems]
    return from_scenes(
        f"{root.name}/{list_name}", paths, object_array(annotations), tuple(CLASSES)
    )


def _find_list(folder: Path, split: str) -> tuple[Path, str]:
    """(folder of the year, name of the list in it)."""
    name, year = re.fullmatch(r"(.*?)(\d{4})?", split.strip()).groups()
    if (folder / LISTS).is_dir():
        roots = [folder] if year is None or folder.name == f"VOC{year}" else []
    else:
        roots = [folder / place.format(year) for place in PLACES if year]
    root = next((r for r in roots if (r / LISTS).is_dir()), None)
    if root is None or not (root / LISTS / f"{name}.txt").is_file():
        raise MissingSplit(
            f"data: {folder} has no split {split!r}; "
            f"{nearest(split, _split_names(folder))}"
        )
    return root, name


def _split_names(folder: Path) -> list[str]:
    """The splits in `folder`: the name of a list, followed by the year."""
    names = []
    years = (root for place in PLACES for root in folder.glob(place.format("????")))
    for root in (folder, *years):
        year = root.name[3:] if re.fullmatch(r"VOC\d{4}", root.name) else ""
        lists = (p.stem for p in (root / LISTS).glob("*.txt"))
        # Lists of a single class, such as dog_train, are for classification.
        names += [name + year for name in lists if "_" not in name]
    return names


def number_of(stem: str) -> int:
    """A picture's number: 5 for 000005 and 2008000002 for 2008_000002.

    Other names get a number from their checksum.
    """
    digits = stem.replace("_", "")
    if digits.isascii() and digits.isdigit():
        return int(digits)
    return 2**40 + zlib.crc32(stem.encode())  # above all numbers of the official files


def read_xml(file: Path) -> Objects:
    """The objects of one picture; UsageError if the file is missing or malformed."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"data: {file} cannot be read: {error.strerror}.") from error
    # Nested entities could expand to gigabytes ("billion laughs").
    if b"<!ENTITY" in data:
        raise UsageError(f"data: {file} defines entities, which no annotation needs.")
    try:
        tree = ElementTree.fromstring(data)
        size = [int(_text(tree, f"size/{side}")) for side in ("height", "width")]
        rows = [_object_row(element, file) for element in tree.findall("object")]
    except UsageError:  # itself a ValueError
        raise
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(
            f"data: {file} is not a valid VOC annotation: {error}."
        ) from error
    rows = [row for row in rows if row is not None]
    return objects(number_of(file.stem), *size, rows, with_shapes=False)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path} in {element.tag}")
    return text.strip()


def _object_row(element: ElementTree.Element, file: Path) -> tuple | None:
    """A row for scenes.objects; None if the box is empty."""
    name = _text(element, "name")
    check_name(f"data: {file}: class", name, CLASSES)
    x0, y0, x1, y1 = (float(_text(element, f"bndbox/{side}")) for side in SIDES)
    x0, y0 = x0 - 1, y0 - 1
    if not (x1 > x0 and y1 > y0):  # NaN fails the comparison too
        return None
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    area = (x1 - x0) * (y1 - y0)
    return (x0, y0, x1, y1), CLASSES.index(name), False, difficult, area, None
