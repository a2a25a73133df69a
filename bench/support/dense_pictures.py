"""Annotated pictures for runs of segmentation and detection: shapes in colour."""

import json

import numpy as np
from PIL import Image

SIDE, PICTURES = 64, 9
TRAINED = 8  # of them show something
COLOURS = np.array([(220, 40, 40), (40, 200, 60), (50, 80, 230)], np.uint8)


def boxes_of(rng, count):
    """[count, 4] whole numbers in SIDE, sides of 12 to 40."""
    size = rng.integers(12, 40, (count, 2))
    start = rng.integers(0, SIDE - size)
    return np.concatenate([start, start + size], axis=1)


def draw(rng, boxes, classes):
    """(picture, map of classes: 0 for none, k for class k - 1)."""
    image = rng.integers(90, 140, (SIDE, SIDE, 3)).astype(np.uint8)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for (x0, y0, x1, y1), k in zip(boxes, classes, strict=True):
        image[y0:y1, x0:x1], labels[y0:y1, x0:x1] = COLOURS[k], k + 1
    return image, labels


def rows_of(number, boxes, classes, first):
    """Annotations of a picture as COCO's file has them."""
    pairs = zip(boxes.tolist(), classes, strict=True)
    for i, ((x0, y0, x1, y1), k) in enumerate(pairs):
        outline = [x0, y0, x1, y0, x1, y1, x0, y1]
        yield {
            "id": first + i,
            "image_id": number,
            "category_id": [3, 7, 12][k],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
            "segmentation": [outline],
        }


def save(folder):
    """folder/coco, folder/VOCdevkit and folder/ade: the same nine pictures.

    The last one shows nothing, the one before it has a crowd, too.
    """
    rng, rows, images = np.random.default_rng(0), [], []
    for number in range(1, PICTURES + 1):
        count = 0 if number == PICTURES else 1 + number % 3
        boxes, classes = boxes_of(rng, count), rng.integers(0, 3, count)
        picture, labels = draw(rng, boxes, classes)
        store(folder, number, picture, labels, boxes, classes)
        rows += rows_of(number, boxes, classes, len(rows) + 1)
        name, size = f"{number}.png", {"height": SIDE, "width": SIDE}
        images.append({"id": number, "file_name": name, **size})
    whole = {
        "size": [SIDE, SIDE],
        "counts": [0, SIDE * SIDE // 4, SIDE * SIDE * 3 // 4],
    }
    crowd = {"id": 99, "image_id": PICTURES - 1, "category_id": 3, "iscrowd": 1}
    crowd |= {"bbox": [0, 0, 16, 64], "area": 1024, "segmentation": whole}
    names = {3: "cat", 7: "dog", 12: "owl"}
    found = {"images": images, "annotations": [*rows, crowd]}
    found["categories"] = [{"id": k, "name": v} for k, v in names.items()]
    (folder / "coco/annotations.json").write_text(json.dumps(found))
    return folder


def store(folder, number, picture, labels, boxes, classes):
    """A picture in the layouts of COCO, VOC and ADE20K."""
    voc = folder / "VOCdevkit/VOC2007"
    for place in ("coco/images", "ade"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for place in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / place).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"coco/images/{number}.png")
    Image.fromarray(picture).save(folder / f"ade/{number}.jpg", quality=95)
    Image.fromarray(labels).save(folder / f"ade/{number}.png")
    Image.fromarray(picture).save(voc / f"JPEGImages/{number}.jpg", quality=95)
    text = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
    for box, k in zip(boxes, classes, strict=True):
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box + (1, 1, 0, 0), strict=True)
        places = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        name = ("cat", "dog", "cow")[k]
        text += f"<object><name>{name}</name><bndbox>{places}</bndbox></object>"
    (voc / f"Annotations/{number}.xml").write_text(f"<annotation>{text}</annotation>")
    with open(voc / "ImageSets/Main/trainval.txt", "a") as file:
        file.write(f"{number}\n")
