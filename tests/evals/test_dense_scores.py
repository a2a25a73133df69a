"""Scores of dense tasks: perfect answers, rules by hand, and what is no answer."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from mixjax.data import coco_objects
from mixjax.data.scenes import objects, rasterise
from mixjax.errors import UsageError
from mixjax.evals import coco_scores, miou_scores, voc_scores
from mixjax.evals.voc_scores import Detections
from tests.support import annotated_sets

# --- COCO --------------------------------------------------------------------------


def perfect(source, ids):
    """Every object outside crowds as a detection."""
    found = []
    for known in source.labels:
        own = ~known.crowd
        shapes = [s for s, mine in zip(known.shapes, own, strict=True) if mine]
        masks = [rasterise(s, known.height, known.width) for s in shapes]
        masks = [coco_masks.encode(np.asfortranarray(m, np.uint8)) for m in masks]
        scores = np.linspace(0.9, 0.1, own.sum())
        args = known.boxes[own], scores, known.classes[own], ids, masks
        found += coco_scores.results(known.id, *args)
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def sample(shared):
    path = str(shared / "data/coco_sample")
    source = coco_objects.open_coco(path, "train", "")
    ids = coco_objects.category_ids(path, "train")
    return coco_scores.ground_truth(source.labels, ids, source.names), source, ids


@pytest.mark.parametrize("kind", coco_scores.KINDS)
def test_perfect_detections_of_the_sample_score_one(sample, kind):
    truth, source, ids = sample
    assert sum(row["iscrowd"] for row in truth["annotations"]) == 2
    numbers, each = coco_scores.score(truth, perfect(source, ids), kind)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        assert numbers[name] == pytest.approx(1, abs=1e-9), name
    shown = {source.names[c] for o in source.labels for c in o.classes[~o.crowd]}
    for name, value in each.items():
        assert value == pytest.approx(1 if name in shown else -1, abs=1e-9), name


def test_classes_written_out_as_they_are_counted_score_less(sample):
    """The file's numbers have holes: 0 .. 79 are others."""
    truth, source, ids = sample
    numbers, _ = coco_scores.score(truth, perfect(source, range(80)), "bbox")
    assert numbers["AP"] < 0.2


def test_a_detection_in_a_crowd_does_not_count():
    image, known = annotated_sets.drawn(
        [(0, 0, 20, 20), (40, 0, 80, 40)], 50, 90, annotated_sets.rectangle, crowd=(1,)
    )
    known = known._replace(classes=np.zeros(2, np.int32))
    truth = coco_scores.ground_truth([known], (7,), ("thing",))
    boxes = np.array([[45, 5, 60, 20], [0, 0, 20, 20]], np.float32)
    found = coco_scores.results(1, boxes, [0.9, 0.8], [0, 0], (7,), None)
    assert coco_scores.score(truth, found, "bbox")[0]["AP"] == pytest.approx(1)
    found[0]["bbox"][1] = 38.0  # most of it is outside now
    assert coco_scores.score(truth, found, "bbox")[0]["AP"] == pytest.approx(0.5)


def test_results_are_what_the_file_format_says():
    mask = coco_masks.encode(np.asfortranarray(np.eye(3, dtype=np.uint8)))
    boxes = np.array([[1, 2, 4, 8]], np.float32)
    row = coco_scores.results(9, boxes, [0.5], [1], (3, 11), [mask])[0]
    assert json.loads(json.dumps(row)) == row
    expected = {"image_id": 9, "category_id": 11, "bbox": [1, 2, 3, 6], "score": 0.5}
    code = row.pop("segmentation")
    assert row == expected and isinstance(code["counts"], str)
    np.testing.assert_array_equal(rasterise(code, 3, 3), np.eye(3, dtype=bool))


def test_coco_scores_of_nothing():
    empty = objects(1, 9, 9, [], with_shapes=False)
    truth = coco_scores.ground_truth([empty], (3,), ())
    for found in ([], coco_scores.results(1, np.ones((1, 4)), [0.5], [0], (3,), None)):
        numbers, each = coco_scores.score(truth, found, "bbox")
        assert set(numbers.values()) == {-1.0} and each == {"3": -1.0}
    assert coco_scores.results(1, np.zeros((0, 4)), [], [], (3,), None) == []
    _, known = annotated_sets.drawn(
        [(0, 0, 4, 4)], 9, 9, annotated_sets.rectangle, shaped=False
    )
    truth = coco_scores.ground_truth([known], (3,), ())
    with pytest.raises(UsageError, match="'segm' needs masks, which the truth lacks"):
        coco_scores.score(truth, [], "segm")
    with pytest.raises(UsageError, match="did you mean 'bbox'"):
        coco_scores.score(truth, [], "box")


# --- VOC ---------------------------------------------------------------------------


def of_one_class(boxes, difficult=()):
    rows = [(b, 0, False, i in difficult, 0.0, None) for i, b in enumerate(boxes)]
    return objects(1, 500, 500, rows, with_shapes=False)


def found(boxes, scores):
    zeros = np.zeros(len(scores), np.int32)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores), zeros
    )


def ap50(known, detections, eleven=True):
    return voc_scores.score([known], [detections], 1, eleven)["AP50"]


def test_voc_overlap_counts_both_ends():
    """10 x 10 pixels against 10 x 19, of which they are 10/19; 9 / 18 without + 1."""
    known = of_one_class([(0, 0, 10, 10)])
    wide = found([(0, 0, 19, 10)], [0.9])
    box, other = np.array([1.0, 1, 10, 10]), np.array([[1.0, 1, 19, 10]])
    assert voc_scores.overlap(box, other)[0] == pytest.approx(10 / 19)
    assert ap50(known, wide) == 100
    assert ap50(known, found([(0, 0, 20, 10)], [0.9])) == 0  # exactly a half


def test_voc_detections_are_rounded_as_printed():
    known = of_one_class([(0, 0, 10, 10)])
    assert ap50(known, found([(0, 0, 19.96, 10)], [0.9])) == 0  # printed as 20.0
    assert ap50(known, found([(0, 0, 19.94, 10)], [0.9])) == 100
    one = voc_scores.printed(found([(0.04, 7.26, 1.35, 4)], [0.12345]))
    assert one.boxes.tolist() == [[1.0, 8.3, 1.4, 4.0]] and one.scores.tolist() == [
        0.123
    ]
    order = found([(300, 300, 310, 310), (0, 0, 10, 10)], [0.90012, 0.90034])
    assert ap50(known, order, eleven=False) == 50  # a tie, in the order given


def test_voc_objects_are_found_once_and_difficult_ones_do_not_count():
    known = of_one_class([(0, 0, 10, 10), (50, 50, 90, 90)], difficult=(1,))
    twice = found([(0, 0, 10, 10), (0, 0, 10, 10)], [0.9, 0.8])
    recall, precision = voc_scores.curve(
        voc_scores.match([known], [voc_scores.printed(twice)], 0), 0.5
    )
    assert recall.tolist() == [1, 1] and precision.tolist() == [1, 0.5]
    hard = found([(50, 50, 90, 90), (0, 0, 10, 10)], [0.9, 0.8])
    assert ap50(known, hard) == 100
    assert ap50(known._replace(difficult=np.zeros(2, bool)), hard) == 100
    assert ap50(known, found([(200, 200, 240, 240), (0, 0, 10, 10)], [0.9, 0.8])) == 50


def test_voc_areas_and_eleven_points():
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    area = voc_scores.average_precision(recall, precision, eleven=False)
    assert area == pytest.approx(0.5 + 0.5 * 2 / 3)
    points = voc_scores.average_precision(recall, precision, eleven=True)
    assert points == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_voc_scores_of_nothing():
    known = of_one_class([(0, 0, 10, 10)])
    none = found([], [])
    assert voc_scores.score([known], [none], 1, True) == {"AP": 0, "AP50": 0, "AP75": 0}
    perfect = found([(0, 0, 10, 10)], [0.9])
    for detections in (none, perfect):
        each = voc_scores.table([known], [detections], 3, True)
        assert np.isnan(each[1:]).all() and not np.isnan(each[0]).any()
    numbers = voc_scores.score([known], [perfect], 3, True)  # two classes have none
    assert numbers == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})
    hidden = of_one_class([(0, 0, 10, 10)], difficult=(0,))
    assert np.isnan(ap50(hidden, perfect))


# --- segmentation ------------------------------------------------------------------


def test_confusion_adds_up_and_leaves_out_what_is_ignored():
    labels = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)
    predicted = np.array([[0, 2, 1], [2, 2, 1]])
    counts = miou_scores.confusion(predicted, labels, 4)
    assert (
        counts.sum() == 5 and counts[1, 2] == 1 and counts[0].tolist() == [1, 1, 0, 0]
    )
    found = miou_scores.scores(counts + counts)
    np.testing.assert_allclose(found["iou"], [1 / 2, 0, 2 / 3, np.nan])
    np.testing.assert_allclose(found["acc"], [1 / 2, 0, 1, np.nan])
    assert found["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert found["aAcc"] == pytest.approx(3 / 5)


def test_confusion_of_classes_that_are_none():
    labels = np.zeros((2, 2), np.uint8)
    for value, labelled in ((4, False), (-1, False), (4, True)):
        odd = np.full((2, 2), value)
        pair = (labels, odd) if labelled else (odd, labels)
        what = "label" if labelled else "prediction"
        with pytest.raises(UsageError, match=f"a {what} of {value} is none of the 4"):
            miou_scores.confusion(*pair, 4)


def test_miou_of_nothing():
    ignored = np.full((2, 2), 255, np.uint8)
    found = miou_scores.scores(miou_scores.confusion(np.zeros((2, 2)), ignored, 3))
    assert all(np.isnan(v).all() for v in found.values())
