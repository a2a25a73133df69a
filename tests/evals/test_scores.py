"""Scores of classifiers, by hand; the corruption error of AlexNet itself."""

import numpy as np
import pytest

from mixjax.errors import UsageError
from mixjax.evals import imagenet_a, imagenet_c, scores

LOGITS = np.array([[3.0, 2, 1], [1, 3, 2], [2, 3, 1], [1, 2, 3]])
LABELS = np.array([0, 1, 0, 1])


def test_top_k_and_mean_per_class():
    assert scores.top(LOGITS, LABELS, 1) == 50
    assert scores.top(LOGITS, LABELS, 2) == 100
    assert scores.top(LOGITS, np.array([2, 0, 2, 0]), 2) == 0
    # Class 0: 1 of 3; class 2: 1 of 1; class 1 does not occur.
    predicted, labels = np.array([0, 1, 1, 2]), np.array([0, 0, 0, 2])
    assert scores.mean_per_class(predicted, labels) == pytest.approx(200 / 3)


def test_eleven_points():
    """Ranked: hit, miss, hit, (not counted), miss; recall 1/2 at 1, 1 at 2/3."""
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    labels = np.array([1, 0, 1, -1, 0])
    want = (6 * 1 + 5 * 2 / 3) / 11  # recalls 0 to 0.5, then 0.6 to 1
    assert scores.eleven_point(values, labels) == pytest.approx(want)
    # Ten present: a recall of 0.3 counts as reached by three.
    labels = np.array([1] * 3 + [0] * 2 + [1] * 7)
    falling = -np.arange(12.0)
    best = [1.0] * 4 + [10 / 12] * 7  # recalls 0 to 0.3, then all of them
    got = scores.eleven_point(falling, labels)
    assert got == pytest.approx(np.mean(best))


def test_map_leaves_out_classes_that_do_not_occur():
    labels = np.array([[1, 0], [0, 0], [1, -1]])
    logits = np.array([[3.0, 1], [1, 2], [2, 3]])
    assert scores.mean_average_precision(logits, labels) == 100
    assert scores.all_of(logits, labels) == {"map": 100}


def test_all_of_single_labels():
    assert scores.all_of(LOGITS, LABELS) == {"top1": 50, "mean_per_class": 50}
    wide = np.eye(7)
    assert scores.all_of(wide, np.arange(7))["top5"] == 100


def test_alexnet_has_an_mce_of_100():
    """Whatever the order of the corruptions, and however severities differ."""
    names = sorted(imagenet_c.ALEXNET)
    spread = np.array([0.9, 0.95, 1.0, 1.05, 1.1])
    errors = {name: imagenet_c.ALEXNET[name] * spread for name in names}
    assert imagenet_c.mce(errors) == pytest.approx(100)
    assert len(names) == 15
    half = {k: v / 2 if k == "fog" else v for k, v in errors.items()}
    assert imagenet_c.mce(half) == pytest.approx(100 - 50 / 15)
    with pytest.raises(UsageError, match="missing: .*'fog'"):
        imagenet_c.mce({k: v for k, v in errors.items() if k != "fog"})
    with pytest.raises(UsageError, match="'spatter' does not exist"):
        imagenet_c.corruption_errors({"spatter": [0.5]})


def test_the_classes_of_imagenet_a():
    classes = imagenet_a.CLASSES
    assert len(classes) == len(set(classes)) == 200
    assert list(classes) == sorted(classes) and 0 <= classes[0] < classes[-1] < 1000
