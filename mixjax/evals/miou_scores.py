"""Mean intersection over union, as ADE20K and mmsegmentation define it.

Pixels are counted over the whole data set; the mean of the images' own values would be
another number. NumPy on the host; results are fractions, not percent.
"""

import numpy as np

from mixjax.data.scenes import IGNORED
from mixjax.errors import UsageError


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts pixels by label (rows) and prediction (columns): int64 [K, K].

    predicted, labels: integers of the same shape; pixels labelled 255 do not count.
    Results of several calls may be added. UsageError for a class outside 0 .. K - 1.
    """
    counted = labels != IGNORED
    rows = labels[counted].astype(np.int64)
    columns = predicted[counted].astype(np.int64)
    for kind, indices in (("label", rows), ("prediction", columns)):
        if indices.size and not (0 <= indices.min() and indices.max() < classes):
            worst = indices.min() if indices.min() < 0 else indices.max()
            raise UsageError(
                f"evals: a {kind} of {worst} is none of the {classes} classes, "
                f"0 .. {classes - 1}."
            )
    # Row-major position in the matrix, so that one bincount counts all pairs.
    pairs = np.bincount(rows * classes + columns, minlength=classes**2)
    return pairs.reshape(classes, classes)


def scores(counts: np.ndarray) -> dict[str, np.ndarray | float]:
    """mIoU, mAcc, aAcc, and iou [K] and acc [K] of each class, from confusion [K, K].

    A class in neither labels nor predictions is nan and not part of the means; one that
    is predicted but has no label has iou 0 and acc nan.
    """
    correct = np.diag(counts).astype(np.float64)  # [K], the intersections
    labels, predicted = counts.sum(axis=1), counts.sum(axis=0)
    iou = ratio(correct, labels + predicted - correct)
    acc = ratio(correct, labels)
    return {
        "mIoU": mean_defined(iou),
        "mAcc": mean_defined(acc),
        "aAcc": float(ratio(correct.sum(), np.float64(counts.sum()))),
        "iou": iou,
        "acc": acc,
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def mean_defined(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def windows(height: int, width: int, crop: int, stride: int) -> np.ndarray:
    """The places of a sliding window: int [n, 4], (y1, x1, y2, x2), row by row.

    As in mmsegmentation: the last window is moved back to end at the border, and a side
    shorter than `crop` is covered by one shorter window.
    """
    starts = [_starts(side, crop, stride) for side in (height, width)]
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    y, x = np.array(corners).T
    ends = np.minimum(y + crop, height), np.minimum(x + crop, width)
    return np.stack([y, x, *ends], axis=1)  # [n, 4]


def _starts(side: int, crop: int, stride: int) -> list[int]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [min(i * stride, max(side - crop, 0)) for i in range(count)]
