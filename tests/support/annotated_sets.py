"""Small annotated sets, and scenes of one colour per object, for the tests."""

import json

import numpy as np
from PIL import Image

from mixjax.data.scenes import objects

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)


def picture(path, height=24, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def coco():
    """A COCO file as a dictionary: three pictures of 24 x 32, in no order."""
    square = [4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0]
    row = {"image_id": 9, "category_id": 7, "bbox": [4, 4, 8, 8], "area": 64.0}
    row |= {"iscrowd": 0, "segmentation": [square]}
    everywhere = {"size": [24, 32], "counts": [0, 24 * 32]}
    lines = {"segmentation": [[1, 1, 9, 9], [1, 1, 5]]}
    changes = (
        {},
        {"segmentation": [[1, 2], square, [1, 1, 9, 1, 9, 9, 3]], "category_id": 3},
        {"iscrowd": 1, "segmentation": everywhere},
        lines,  # nothing left of it
        {"bbox": [4, 4, 0, 8]},
        {"category_id": 90},  # no thing
        {"image_id": 5, "iscrowd": 1, "segmentation": everywhere},
    )
    names = {3: "cat", 7: "dog", 12: "owl"}
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 24, "width": 32}
            for i in (9, 5, 7)
        ],
        "annotations": [{**row, **c, "id": i} for i, c in enumerate(changes)],
        "categories": [
            {"id": 90, "name": "sky", "isthing": 0},
            *({"id": k, "name": v, "isthing": 1} for k, v in names.items()),
        ][::-1],
    }


def save_coco(folder, content, split="train2017"):
    """`content` in the folders of COCO's archives."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "annotations" / f"instances_{split}.json").write_text(text)
    for number in (5, 7, 9):
        picture(folder / split / f"{number}.jpg")
    return folder


def rectangle(box):
    """The outline of a box, as COCO has it."""
    x0, y0, x1, y1 = box
    return [np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float64)]


def corner(box):
    """An L: the box without its upper right quarter."""
    x0, y0, x1, y1 = box
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    return [np.array([x0, y0, x, y0, x, y, x1, y, x1, y1, x0, y1], np.float64)]


def drawn(boxes, height, width, outline=corner, crowd=(), shaped=True):
    """(picture, its Objects): each of up to three boxes in a colour of its own.

    Objects are Ls, or what `outline` makes of their whole numbers.
    """
    image, rows = np.zeros((height, width, 3), np.uint8), []
    for i, box in enumerate(boxes):
        x0, y0, x1, y1 = (int(v) for v in box)
        image[y0:y1, x0:x1] = COLOURS[i]
        if outline is corner:
            image[y0 : (y0 + y1) // 2, (x0 + x1) // 2 : x1] = 0
        area = (x1 - x0) * (y1 - y0)
        rows.append((box, i, i in crowd, False, area, outline(box)))
    return image, objects(1, height, width, rows, with_shapes=shaped)


def seen(image, i):
    """bool [H, W]: where a picture shows more than half of colour i."""
    return image[..., i] > 127


def around(mask):
    """(x0, y0, x1, y1) of what is True."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])


def voc_xml(rows, size=(24, 32)):
    """VOC's text for rows (name, difficult or None, box as the file counts)."""
    text = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    for name, difficult, box in rows:
        hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        places = "".join(f"<{side}>{v}</{side}>" for side, v in sides)
        text += f"<object><name>{name}</name>{hard}<part><name>head</name>"
        text += f"<bndbox><xmin>1</xmin></bndbox></part><bndbox>{places}</bndbox>"
        text += "</object>"
    return f"<annotation>{text}</annotation>"


def save_voc(root, year, split, texts):
    """{stem: xml} as the list `split` of VOC<year>."""
    root = root / f"VOC{year}"
    for stem, text in texts.items():
        picture(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(texts) + "\n")
