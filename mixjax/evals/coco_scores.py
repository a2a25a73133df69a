"""COCO's average precision of boxes and masks, by COCO's own code (pycocotools).

Runs on the host. Scores are fractions; -1 means that there is no such object. Results
and ground truth follow COCO's file formats (cocodataset.org, "Data format" and "Results
format"): boxes (x, y, width, height) in pixels of the original image, and the ids of
images and categories from the annotation file.
"""

import contextlib
import copy
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixjax.data.scenes import Objects
from mixjax.errors import UsageError, check_name

KINDS = ("bbox", "segm")
# In the order of COCOeval.stats.
NAMES = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()


def results(
    id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    category_ids: Sequence[int],
    masks: Sequence[dict] | None,
) -> list[dict]:
    """The detections of image `id` as rows of a COCO result file.

    boxes: [n, 4] (x0, y0, x1, y1) in pixels of the original image; scores: [n];
    classes: [n] in 0 .. K - 1; category_ids: the annotation file's id of each class.
    masks: n run-length codes of pycocotools, {"size", "counts"}, or None.
    """
    rows = []
    for i, (box, score, label) in enumerate(zip(boxes, scores, classes, strict=True)):
        row = {"image_id": int(id), "category_id": int(category_ids[int(label)])}
        row["bbox"] = corner_and_size(box)
        row["score"] = float(score)
        if masks is not None:
            row["segmentation"] = as_text(masks[i])
        rows.append(row)
    return rows


def corner_and_size(box: np.ndarray) -> list[float]:
    """(x0, y0, x1, y1) -> [x, y, width, height]."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def as_text(shape: list | dict) -> list | dict:
    """A polygon list or a run-length code, in types that JSON can hold."""
    if isinstance(shape, list):
        return [np.asarray(polygon).tolist() for polygon in shape]
    counts = shape["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in shape["size"]], "counts": counts}


def ground_truth(
    truth: Sequence[Objects], category_ids: Sequence[int], names: Sequence[str]
) -> dict:
    """The objects of all images in the form of a COCO annotation file, with crowds.

    category_ids, names: of the classes, in their order; names may be empty.
    """
    names = names or [str(id) for id in category_ids]
    images, annotations = [], []
    for objects in truth:
        size = {"height": objects.height, "width": objects.width}
        images.append({"id": objects.id, **size})
        for i, box in enumerate(objects.boxes):
            # Ids start at 1: COCOeval takes a match with id 0 for no match.
            row = {"id": len(annotations) + 1, "image_id": objects.id}
            row["category_id"] = int(category_ids[objects.classes[i]])
            row["bbox"] = corner_and_size(box)
            row["area"] = float(objects.area[i])
            row["iscrowd"] = int(objects.crowd[i])
            if objects.shapes and objects.shapes[i] is not None:
                row["segmentation"] = as_text(objects.shapes[i])
            annotations.append(row)
    categories = [
        {"id": int(id), "name": name}
        for id, name in zip(category_ids, names, strict=True)
    ]
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def score(
    truth: dict, rows: list[dict], kind: str
) -> tuple[dict[str, float], dict[str, float]]:
    """({name in NAMES: score}, {category: AP}) of result rows against ground truth.

    kind: "bbox" or "segm". Images without results count, too. The arguments are not
    changed. UsageError if kind is "segm" and a mask is missing.
    """
    check_name("evals: kind", kind, KINDS)
    if kind == "segm":
        check_masks("truth lacks", truth["annotations"])
        check_masks("results lack", rows)
        # pycocotools takes a result's area from its box if it has one; small, medium
        # and large masks must be told apart by the masks' own area.
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        annotations = open_dataset(truth)
        results = open_dataset({**truth, "annotations": []})
        if rows:  # loadRes fails on an empty list
            results = annotations.loadRes(copy.deepcopy(rows))
        evaluation = COCOeval(annotations, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = zip(NAMES, evaluation.stats.tolist(), strict=True)
    return dict(numbers), per_category(evaluation, truth["categories"])


def check_masks(subject: str, rows: list[dict]) -> None:
    """Raises UsageError if a row has no mask; subject: "truth lacks", for example."""
    if any("segmentation" not in row for row in rows):
        raise UsageError(f"evals: kind='segm' needs masks, which the {subject}.")


def open_dataset(dataset: dict) -> COCO:
    """A pycocotools data set made of a dictionary instead of a file."""
    coco = COCO()
    coco.dataset = copy.deepcopy(dataset)
    coco.createIndex()
    return coco


def per_category(evaluation: COCOeval, categories: list[dict]) -> dict[str, float]:
    """{category: AP} over all sizes and 100 detections; -1 for one without objects."""
    # The last two axes are size (0: all) and most detections per image (-1: 100).
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, K]
    names, ap = {c["id"]: c["name"] for c in categories}, {}
    for i, id in enumerate(evaluation.params.catIds):
        defined = precision[:, :, i][precision[:, :, i] > -1]
        ap[names[id]] = float(defined.mean()) if defined.size else -1.0
    return ap
