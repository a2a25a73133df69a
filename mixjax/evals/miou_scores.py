"""Mean intersection over union, as the benchmarks of semantic segmentation count it.

NumPy on the host. Pixels of all pictures are counted together; a mean over pictures is
another number. Fractions, not percent.
"""

import numpy as np

from mixjax.data.scenes import IGNORED
from mixjax.errors import UsageError


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by label (rows) and prediction (columns): int64 [classes, classes].

    predicted, labels: whole numbers of one shape; labels of 255 do not count. What
    several calls return may be added up. UsageError if a class is not in 0 .. classes.
    """
    counted = labels != IGNORED
    rows = labels[counted].astype(np.int64)
    columns = predicted[counted].astype(np.int64)
    for what, found in (("label", rows), ("prediction", columns)):
        if found.size and not (0 <= found.min() and found.max() < classes):
            worst = found.min() if found.min() < 0 else found.max()
            raise UsageError(
                f"evals: a {what} of {worst} is none of the {classes} classes, "
                f"0 .. {classes - 1}."
            )
    pairs = np.bincount(rows * classes + columns, minlength=classes**2)
    return pairs.reshape(classes, classes)


def scores(counts: np.ndarray) -> dict[str, np.ndarray | float]:
    """mIoU, mAcc, aAcc, and iou and acc [K] of each class, from confusion [K, K].

    A class that neither labels nor predictions have is nan and no part of the means;
    one that is predicted but is in no label has iou 0, and acc nan.
    """
    both = np.diag(counts).astype(np.float64)
    labels, predicted = counts.sum(axis=1), counts.sum(axis=0)
    iou = ratio(both, labels + predicted - both)
    acc = ratio(both, labels)
    return {
        "mIoU": mean_known(iou),
        "mAcc": mean_known(acc),
        "aAcc": float(ratio(both.sum(), np.float64(counts.sum()))),
        "iou": iou,
        "acc": acc,
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where there is nothing."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def mean_known(values: np.ndarray) -> float:
    """The mean of what is not nan; nan if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def windows(height: int, width: int, crop: int, stride: int) -> np.ndarray:
    """Where a sliding window of `crop` looks: int [n, 4], (y1, x1, y2, x2), row by row.

    One that would stick out is moved back to end at the border; a side shorter than
    `crop` is seen whole, in one shorter window.
    """
    starts = [_starts(side, crop, stride) for side in (height, width)]
    found = [(y, x) for y in starts[0] for x in starts[1]]
    y, x = np.array(found).T
    ends = np.minimum(y + crop, height), np.minimum(x + crop, width)
    return np.stack([y, x, *ends], axis=1)  # [n, 4]


def _starts(side: int, crop: int, stride: int) -> list[int]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [min(i * stride, max(side - crop, 0)) for i in range(count)]
