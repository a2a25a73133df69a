"""What a classifier's outputs are worth: accuracy, mean per class, average precision.

NumPy on the host, over all examples at once; in percent.
"""

import numpy as np


def top(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of rows of logits [N, K] with their label among the k highest.

    A class counts as higher than the label's only if its logit is: ties are hits for
    k > 1, while for k = 1 the first of equals is the answer, as argmax has it.
    """
    if k == 1:
        return 100 * float((logits.argmax(axis=1) == labels).mean())
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return 100 * float(((logits > own).sum(axis=1) < k).mean())


def mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy of each class that occurs in labels [N], averaged over classes."""
    hit = predicted == labels
    return 100 * float(np.mean([hit[labels == c].mean() for c in np.unique(labels)]))


def eleven_point(scores: np.ndarray, labels: np.ndarray) -> float:
    """VOC2007's average precision of one class, in 0 .. 1 (Everingham et al., 2010).

    The mean, over recalls of 0, 0.1, .. 1, of the best precision at that recall or
    more. scores: [N]; labels: [N], 1 present, 0 absent, -1 not counted. nan if the
    class does not occur.
    """
    counted = labels >= 0
    scores, labels = scores[counted], labels[counted]
    if not labels.sum():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(labels[order])
    recall = found / labels.sum()
    precision = found / np.arange(1, len(found) + 1)
    # A recall of 3/10 is 0.3 only but for rounding.
    reached = [precision[recall >= t - 1e-9] for t in np.linspace(0, 1, 11)]
    return float(np.mean([p.max() if len(p) else 0.0 for p in reached]))


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of eleven_point over the classes that occur; [N, K] both."""
    each = [eleven_point(*columns) for columns in zip(logits.T, labels.T, strict=True)]
    return 100 * float(np.nanmean(each))


def all_of(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{metric: value} of what fits the labels: [N], or [N, K] of several a picture."""
    if labels.ndim == 2:
        return {"map": mean_average_precision(logits, labels)}
    found = {"top1": top(logits, labels, 1)}
    if logits.shape[1] > 5:
        found["top5"] = top(logits, labels, 5)
    return found | {"mean_per_class": mean_per_class(logits.argmax(axis=1), labels)}
