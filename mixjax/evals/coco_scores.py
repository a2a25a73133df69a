"""COCO's average precision of boxes and masks, with COCO's own code (pycocotools).

On the host. Numbers are fractions; -1 says that no object is of that kind. Results and
truth are what the file formats of COCO say: boxes (x, y, width, height) in pixels of
the file, and the file's own numbers of pictures and categories.
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
NAMES = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()


def results(
    id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    category_ids: Sequence[int],
    masks: Sequence[dict] | None,
) -> list[dict]:
    """The detections of picture `id`, as COCO's result files have them.

    boxes: [n, 4] (x0, y0, x1, y1) in pixels of the file; scores: [n]; classes: [n] in
    0 .. K - 1, category_ids: the file's number of each. masks: n run-length codes of
    pycocotools, {"size", "counts"}, or None.
    """
    found = []
    for i, (box, score, number) in enumerate(zip(boxes, scores, classes, strict=True)):
        row = {"image_id": int(id), "category_id": int(category_ids[int(number)])}
        row["bbox"] = corner_and_size(box)
        row["score"] = float(score)
        if masks is not None:
            row["segmentation"] = as_text(masks[i])
        found.append(row)
    return found


def corner_and_size(box: np.ndarray) -> list[float]:
    """(x0, y0, x1, y1) -> [x, y, width, height]."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def as_text(shape: list | dict) -> list | dict:
    """A shape that JSON can hold."""
    if isinstance(shape, list):
        return [np.asarray(polygon).tolist() for polygon in shape]
    counts = shape["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in shape["size"]], "counts": counts}


def ground_truth(
    known: Sequence[Objects], category_ids: Sequence[int], names: Sequence[str]
) -> dict:
    """Objects of all pictures as COCO's annotation files have them, with crowds.

    category_ids, names: of the classes, in their order; names may be ().
    """
    names = names or [str(id) for id in category_ids]
    images, annotations = [], []
    for found in known:
        images.append({"id": found.id, "height": found.height, "width": found.width})
        for i, box in enumerate(found.boxes):
            row = {"id": len(annotations) + 1, "image_id": found.id}  # 0 is no match
            row["category_id"] = int(category_ids[found.classes[i]])
            row["bbox"] = corner_and_size(box)
            row["area"] = float(found.area[i])
            row["iscrowd"] = int(found.crowd[i])
            if found.shapes and found.shapes[i] is not None:
                row["segmentation"] = as_text(found.shapes[i])
            annotations.append(row)
    categories = [
        {"id": int(id), "name": name}
        for id, name in zip(category_ids, names, strict=True)
    ]
    found = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": {}, "licenses": [], **found}


def score(
    truth: dict, found: list[dict], kind: str
) -> tuple[dict[str, float], dict[str, float]]:
    """({one of NAMES: number}, {category: AP}) of results against the truth.

    kind: "bbox" or "segm". Pictures of the truth without a result count. Neither
    argument is changed. UsageError if masks are asked for and not all there.
    """
    check_name("evals: kind", kind, KINDS)
    if kind == "segm":
        for what, rows in (("truth", truth["annotations"]), ("results", found)):
            if any("segmentation" not in row for row in rows):
                raise UsageError(
                    f"evals: kind='segm' needs masks, which the {what} lack."
                )
        # With its box a result would count as small or large by the box's area.
        found = [{k: v for k, v in row.items() if k != "bbox"} for row in found]
    with contextlib.redirect_stdout(io.StringIO()):
        known, seen = opened(truth), opened({**truth, "annotations": []})
        if found:  # pycocotools cannot load none
            seen = known.loadRes(copy.deepcopy(found))
        evaluation = COCOeval(known, seen, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = zip(NAMES, evaluation.stats.tolist(), strict=True)
    return dict(numbers), per_category(evaluation, truth["categories"])


def opened(dataset: dict) -> COCO:
    """pycocotools' view of a data set that is not in a file."""
    found = COCO()
    found.dataset = copy.deepcopy(dataset)
    found.createIndex()
    return found


def per_category(evaluation: COCOeval, categories: list[dict]) -> dict[str, float]:
    """{category: AP} of all sizes, most detections; -1 if it has no object."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, K]
    names, found = {c["id"]: c["name"] for c in categories}, {}
    for i, id in enumerate(evaluation.params.catIds):
        known = precision[:, :, i][precision[:, :, i] > -1]
        found[names[id]] = float(known.mean()) if known.size else -1.0
    return found
