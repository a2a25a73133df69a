"""PASCAL VOC's average precision of detections (Everingham et al., 2010), in percent.

As detectron2 counts it: boxes are compared as the files count them, in whole pixels
from 1 with both ends included, so widths have a + 1; detections are rounded as if they
had been printed, boxes to 1 decimal and scores to 3. A detection is right if it
overlaps the best object of its picture and class by more than the threshold, and is the
first to find it; with a difficult object it counts neither way.

A class without an object that counts has no AP and is no part of the means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixjax.data.scenes import Objects
from mixjax.evals.miou_scores import mean_known

IOUS = np.arange(50, 100, 5) / 100
STARTS = (1, 1, 0, 0)  # from continuous coordinates to pixels counted from 1
NOTHING = (0.0, -1, False)


class Detections(NamedTuple):
    """What was found in one picture; boxes as in Objects, in pixels of the file."""

    boxes: np.ndarray  # [n, 4]
    scores: np.ndarray  # [n]
    classes: np.ndarray  # [n]


def printed(one: Detections) -> Detections:
    """Detections with boxes as the files count them, and all numbers rounded.

    Rounded by printing: NumPy's own way takes 0.35 for 0.4, which is nearer to 0.3.
    """
    boxes = np.asarray(one.boxes).reshape(-1, 4)
    boxes = boxes + np.array(STARTS, boxes.dtype)
    boxes = [[float(f"{v:.1f}") for v in box] for box in boxes.tolist()]
    scores = [float(f"{v:.3f}") for v in np.asarray(one.scores).tolist()]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(boxes, np.array(scores), np.asarray(one.classes))


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box [4] with boxes [n, 4], ends included: [n]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    both = np.maximum(high - low + 1, 0).prod(axis=1)
    own = (box[2:] - box[:2] + 1).prod()
    return both / (own + (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1) - both)


class Matches(NamedTuple):
    """The detections of one class in all pictures, the surest first."""

    overlaps: np.ndarray  # [n] with the object that each overlaps most
    objects: np.ndarray  # [n] a number of that object, -1 if the picture has none
    difficult: np.ndarray  # [n] bool, whether it is
    total: int  # objects of the class that count


def match(
    known: Sequence[Objects], found: Sequence[Detections], number: int
) -> Matches:
    """Detections as `printed` has them, each with its best object of class `number`.

    Equal scores stay in the order of the pictures.
    """
    rows, total, before = [], 0, 0
    for objects, one in zip(known, found, strict=True):
        own = objects.classes == number
        boxes = objects.boxes[own].astype(np.float64) + STARTS
        hard = objects.difficult[own]
        mine = np.flatnonzero(one.classes == number)
        for score, box in zip(one.scores[mine], one.boxes[mine], strict=True):
            overlaps = overlap(box, boxes)
            best = int(overlaps.argmax()) if len(boxes) else -1
            there = best >= 0
            row = (overlaps[best], before + best, hard[best]) if there else NOTHING
            rows.append((score, *row))
        total, before = total + int((~hard).sum()), before + len(boxes)
    rows.sort(key=lambda row: -row[0])
    overlaps, objects, difficult = np.array([r[1:] for r in rows]).reshape(-1, 3).T
    return Matches(overlaps, objects.astype(int), difficult.astype(bool), total)


def curve(found: Matches, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision), [n] each, as detections are added; `total` is not 0."""
    hit = found.overlaps > iou
    places = np.flatnonzero(hit & ~found.difficult)
    right = np.zeros(len(hit), bool)
    right[places[np.unique(found.objects[places], return_index=True)[1]]] = True
    counted = np.cumsum(~(hit & found.difficult))
    right = np.cumsum(right)
    return right / found.total, right / np.maximum(counted, 1)


def average_precision(recall: np.ndarray, precision: np.ndarray, eleven: bool) -> float:
    """AP in 0 .. 1 of a curve. eleven: the rule of 2007, else the area of 2010 on.

    2007: the mean, over recalls of 0, 0.1, .. 1, of the best precision at that recall
    or more.
    """
    if eleven:
        # As rounded by detectron2 and the first scripts in Python: 3 of 10 found do
        # not reach 0.3. Published numbers are counted so.
        steps = np.arange(0.0, 1.1, 0.1)
        return float(np.mean([precision[recall >= t].max(initial=0) for t in steps]))
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * best[1:]).sum())


def table(
    known: Sequence[Objects], found: Sequence[Detections], classes: int, eleven: bool
) -> np.ndarray:
    """AP in percent of each class at each of IOUS: [classes, 10], nan if it has none.

    known, found: of the same pictures, in the same order.
    """
    every = np.full((classes, len(IOUS)), np.nan)
    found = [printed(one) for one in found]
    for number in range(classes):
        matches = match(known, found, number)
        if matches.total:
            curves = [curve(matches, iou) for iou in IOUS]
            every[number] = [100 * average_precision(*c, eleven) for c in curves]
    return every


def score(
    known: Sequence[Objects], found: Sequence[Detections], classes: int, eleven: bool
) -> dict[str, float]:
    """AP (the mean over IoU 0.50 .. 0.95), AP50 and AP75, over classes, in percent."""
    each = table(known, found, classes, eleven).T
    by_iou = [mean_known(row) for row in each]
    numbers = dict(zip(IOUS.tolist(), by_iou, strict=True))
    mean = mean_known(np.array(by_iou))
    return {"AP": mean, "AP50": numbers[0.5], "AP75": numbers[0.75]}
