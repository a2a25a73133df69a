"""Scores of a classifier: accuracy, accuracy per class, average precision.

NumPy on the host, over all examples at once; in percent unless stated otherwise.
"""

import numpy as np


def top(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Top-k accuracy of logits [N, K] for labels [N].

    For k > 1 only strictly higher logits count against the label, so ties are hits; for
    k = 1 the prediction is argmax, the first of equal logits.
    """
    if k == 1:
        return 100 * float((logits.argmax(axis=1) == labels).mean())
    label_logits = np.take_along_axis(logits, labels[:, None], axis=1)  # [N, 1]
    return 100 * float(((logits > label_logits).sum(axis=1) < k).mean())


def mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that occur in labels [N] of their accuracies."""
    correct = predicted == labels
    by_class = [correct[labels == c].mean() for c in np.unique(labels)]
    return 100 * float(np.mean(by_class))


def eleven_point(scores: np.ndarray, labels: np.ndarray) -> float:
    """VOC2007's average precision of one class, in 0 .. 1 (Everingham et al., 2010).

    The mean over recalls r = 0, 0.1, .. 1 of the highest precision at any recall of r
    or more. scores: [N]; labels: [N], 1 present, 0 absent, -1 difficult,
    which does not count. nan if the class does not occur.
    """
    counted = labels >= 0
    scores, labels = scores[counted], labels[counted]
    if not labels.sum():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    recall = hits / labels.sum()
    precision = hits / np.arange(1, len(hits) + 1)
    # The tolerance lets a recall of 3/10 reach 0.3 in spite of rounding.
    reached = [precision[recall >= t - 1e-9] for t in np.linspace(0, 1, 11)]
    return float(np.mean([p.max() if len(p) else 0.0 for p in reached]))


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of eleven_point over the classes that occur; both arrays are [N, K]."""
    by_class = [
        eleven_point(*columns) for columns in zip(logits.T, labels.T, strict=True)
    ]
    return 100 * float(np.nanmean(by_class))


def all_of(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{metric: value}, for labels [N] or, with several per image, [N, K]."""
    if labels.ndim == 2:
        return {"map": mean_average_precision(logits, labels)}
    metrics = {"top1": top(logits, labels, 1)}
    if logits.shape[1] > 5:  # with fewer classes every answer is among the five
        metrics["top5"] = top(logits, labels, 5)
    return metrics | {"mean_per_class": mean_per_class(logits.argmax(axis=1), labels)}
