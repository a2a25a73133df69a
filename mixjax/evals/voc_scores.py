"""PASCAL VOC's average precision of detections (Everingham et al., 2010), in percent.

As detectron2 computes it: boxes are compared in the convention of VOC's annotation
files, in pixels counted from 1 with both ends included, so that widths have a + 1;
detections are rounded as if written to VOC's result files, boxes to 1 decimal and
scores to 3. A detection is correct if its IoU with the best object of its image and
class is above the threshold and no higher-scored detection has matched that object. A
match with a difficult object counts neither as correct nor as wrong.

A class without countable (not difficult) objects has no AP and is not part of the
means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixjax.data.scenes import Objects
from mixjax.evals.miou_scores import mean_defined

IOUS = np.arange(50, 100, 5) / 100  # the thresholds
# From continuous coordinates to pixels counted from 1: pixel 0, the interval [0, 1],
# becomes 1 .. 1.
STARTS = (1, 1, 0, 0)
NO_MATCH = (0.0, -1, False)  # overlap, object, difficult


class Detections(NamedTuple):
    """The detections of one image; boxes as in Objects, in pixels of the original."""

    boxes: np.ndarray  # [n, 4]
    scores: np.ndarray  # [n]
    classes: np.ndarray  # [n]


def printed(detections: Detections) -> Detections:
    """Detections in VOC's box convention, rounded as in its result files.

    Rounds by printing: np.round(0.35, 1) is 0.4, but 0.35 is stored as slightly less
    and prints as 0.3.
    """
    boxes = np.asarray(detections.boxes).reshape(-1, 4)
    boxes = boxes + np.array(STARTS, boxes.dtype)
    boxes = [[float(f"{v:.1f}") for v in box] for box in boxes.tolist()]
    scores = [float(f"{v:.3f}") for v in np.asarray(detections.scores).tolist()]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(boxes, np.array(scores), np.asarray(detections.classes))


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with boxes [n, 4], ends included: [n]."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=1)
    area = (box[2:] - box[:2] + 1).prod()
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    return shared / (area + areas - shared)


class Matches(NamedTuple):
    """The detections of one class in all images, by descending score."""

    overlaps: np.ndarray  # [n] IoU with the best object
    objects: np.ndarray  # [n] index of that object, -1 if the image has none
    difficult: np.ndarray  # [n] bool, whether that object is difficult
    total: int  # number of objects of the class that are not difficult


def match(
    truth: Sequence[Objects], detections: Sequence[Detections], label: int
) -> Matches:
    """Assigns the detections of class `label` to the objects that they overlap most.

    detections: from `printed`. Equal scores stay in the order of the images.
    """
    rows, total, offset = [], 0, 0  # offset: objects of the images before
    for objects, image in zip(truth, detections, strict=True):
        of_class = objects.classes == label
        boxes = objects.boxes[of_class].astype(np.float64) + STARTS
        difficult = objects.difficult[of_class]
        for i in np.flatnonzero(image.classes == label):
            row = NO_MATCH
            if len(boxes):
                overlaps = overlap(image.boxes[i], boxes)
                best = int(overlaps.argmax())
                row = (overlaps[best], offset + best, difficult[best])
            rows.append((image.scores[i], *row))
        total, offset = total + int((~difficult).sum()), offset + len(boxes)
    rows.sort(key=lambda row: -row[0])  # stable
    overlaps, objects, difficult = np.array([r[1:] for r in rows]).reshape(-1, 3).T
    return Matches(overlaps, objects.astype(int), difficult.astype(bool), total)


def curve(matches: Matches, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision), [n] each, of the 1, 2, .. n highest-scored detections.

    matches.total must not be 0.
    """
    hit = matches.overlaps > iou
    places = np.flatnonzero(hit & ~matches.difficult)
    # The first hit of an object is correct; further ones are duplicates, and wrong.
    _, first = np.unique(matches.objects[places], return_index=True)
    correct = np.zeros(len(hit), bool)
    correct[places[first]] = True
    counted = np.cumsum(~(hit & matches.difficult))
    correct = np.cumsum(correct)
    return correct / matches.total, correct / np.maximum(counted, 1)


def average_precision(recall: np.ndarray, precision: np.ndarray, eleven: bool) -> float:
    """AP in 0 .. 1 of a curve: by the rule of 2007 if `eleven`, else by that of 2010.

    2007: the mean over recalls r = 0, 0.1, .. 1 of the highest precision at any recall
    of r or more. 2010 and later: the area under that highest precision.
    """
    if eleven:
        # Without a tolerance, as in detectron2 and py-faster-rcnn: arange's 0.3 is
        # slightly above 3/10, which therefore does not reach it. Published numbers
        # are computed this way.
        steps = np.arange(0.0, 1.1, 0.1)
        return float(np.mean([precision[recall >= t].max(initial=0) for t in steps]))
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    # From the right: the highest precision at this recall or more.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope[1:]).sum())


def table(
    truth: Sequence[Objects],
    detections: Sequence[Detections],
    classes: int,
    eleven: bool,
) -> np.ndarray:
    """AP in percent of each class at each of IOUS: [classes, 10], nan if undefined.

    truth, detections: of the same images, in the same order.
    """
    aps = np.full((classes, len(IOUS)), np.nan)
    detections = [printed(image) for image in detections]
    for label in range(classes):
        matches = match(truth, detections, label)
        if matches.total:
            curves = [curve(matches, iou) for iou in IOUS]
            aps[label] = [100 * average_precision(*c, eleven) for c in curves]
    return aps


def score(
    truth: Sequence[Objects],
    detections: Sequence[Detections],
    classes: int,
    eleven: bool,
) -> dict[str, float]:
    """Mean over classes, in percent: AP (mean over IoU 0.50 .. 0.95), AP50, AP75."""
    aps = table(truth, detections, classes, eleven)  # [classes, 10]
    by_iou = [mean_defined(row) for row in aps.T]
    numbers = dict(zip(IOUS.tolist(), by_iou, strict=True))
    mean = mean_defined(np.array(by_iou))
    return {"AP": mean, "AP50": numbers[0.5], "AP75": numbers[0.75]}
