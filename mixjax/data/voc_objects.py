"""PASCAL VOC's objects in the folders that its archives make, as sources of scenes.

voc_objects:PATH is VOCdevkit, the folder above it, or VOC2007 (VOC2012) itself. A split
is a list of ImageSets/Main and the year: trainval2007, or trainval2007+trainval2012 for
both; where PATH is one year's folder, the year may be left out.

A box of the files counts whole pixels from 1, both ends included: in continuous
coordinates it is (xmin - 1, ymin - 1, xmax, ymax). Difficult objects are kept, and say
that they are.
"""

import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

from mixjax.data.aircraft import check_pictures_exist
from mixjax.data.coco_objects import from_scenes
from mixjax.data.scenes import Objects, objects, together
from mixjax.data.source import MissingSplit, Source
from mixjax.data.voc import CLASSES, LISTS
from mixjax.errors import UsageError, check_name, nearest

PLACES = ("VOC{}", "VOCdevkit/VOC{}")
SIDES = ("xmin", "ymin", "xmax", "ymax")


def open_voc(rest: str, split: str, directory: str) -> Source:
    """Pictures and their Objects, in the order of the list; all xml files are read.

    Its `labels` are all Objects. UsageError says what is missing or broken, and where.
    """
    path = Path(rest).expanduser()
    if not rest or not path.is_dir():
        raise UsageError(f"data.source=voc_objects:{rest}: there is no such folder.")
    root, name = _find(path, split)
    file = root / LISTS / f"{name}.txt"
    stems = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    paths = [str(root / "JPEGImages" / f"{stem}.jpg") for stem in stems]
    check_pictures_exist(paths, file)
    annotations = [read_xml(root / "Annotations" / f"{stem}.xml") for stem in stems]
    return from_scenes(
        f"{root.name}/{name}", paths, together(annotations), tuple(CLASSES)
    )


def _find(path: Path, split: str) -> tuple[Path, str]:
    """(the year's folder, the list in it)."""
    name, year = re.fullmatch(r"(.*?)(\d{4})?", split.strip()).groups()
    if (path / LISTS).is_dir():
        roots = [path] if year is None or path.name == f"VOC{year}" else []
    else:
        roots = [path / place.format(year) for place in PLACES if year]
    root = next((r for r in roots if (r / LISTS).is_dir()), None)
    if root is None or not (root / LISTS / f"{name}.txt").is_file():
        raise MissingSplit(
            f"data: {path} has no split {split!r}; {_known(path, split)}"
        )
    return root, name


def _known(path: Path, split: str) -> str:
    """Ends a sentence by what splits there are: a list's name and a year."""
    there = []
    years = (root for place in PLACES for root in path.glob(place.format("????")))
    for root in (path, *years):
        year = root.name[3:] if re.fullmatch(r"VOC\d{4}", root.name) else ""
        lists = (p.stem for p in (root / LISTS).glob("*.txt"))
        there += [name + year for name in lists if "_" not in name]
    return nearest(split, there)


def number_of(stem: str) -> int:
    """A picture's number: 5 of 000005, 2008000002 of 2008_000002; any for others."""
    digits = stem.replace("_", "")
    if digits.isascii() and digits.isdigit():
        return int(digits)
    return 2**40 + zlib.crc32(stem.encode())  # above all numbers of the authors' files


def read_xml(file: Path) -> Objects:
    """The objects of one picture; UsageError if the file is missing or broken."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"data: {file} cannot be read: {error.strerror}.") from error
    if b"<!ENTITY" in data:
        raise UsageError(f"data: {file} defines entities, which no annotation needs.")
    try:
        tree = ElementTree.fromstring(data)
        size = [int(_text(tree, f"size/{side}")) for side in ("height", "width")]
        rows = [_row(found, file) for found in tree.findall("object")]
    except UsageError:
        raise
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"data: {file} is no annotation of VOC: {error}.") from error
    rows = [row for row in rows if row is not None]
    return objects(number_of(file.stem), *size, rows, with_shapes=False)


def _text(tree: ElementTree.Element, path: str) -> str:
    text = tree.findtext(path)
    if text is None:
        raise ValueError(f"no {path} in {tree.tag}")
    return text.strip()


def _row(found: ElementTree.Element, file: Path) -> tuple | None:
    """A row of scenes.objects; None if the box is empty."""
    name = _text(found, "name")
    check_name(f"data: {file}: class", name, CLASSES)
    x0, y0, x1, y1 = (float(_text(found, f"bndbox/{side}")) for side in SIDES)
    x0, y0 = x0 - 1, y0 - 1
    if not (x1 > x0 and y1 > y0):  # nor if one is not a number
        return None
    hard = (found.findtext("difficult") or "0").strip() == "1"
    area = (x1 - x0) * (y1 - y0)
    return (x0, y0, x1, y1), CLASSES.index(name), False, hard, area, None
