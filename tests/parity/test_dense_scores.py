"""Scores of dense tasks against pycocotools, detectron2 and mmsegmentation."""

import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixjax.data import coco_objects
from mixjax.data.ade20k import reduce_zero_label
from mixjax.data.scenes import objects
from mixjax.evals import coco_scores, miou_scores, voc_scores
from tests.parity.conftest import FOLDER

KINDS = ("bbox", "segm")


@pytest.fixture(scope="module")
def stored():
    return json.loads((FOLDER / "dense_coco_eval.json").read_text())


def near(stored, kind, found, expected) -> bool:
    return np.allclose(found, expected, rtol=0, atol=stored["tol"][kind])


@pytest.fixture
def opened(stored, tmp_path):
    """The truth as a source over a folder."""
    truth = stored["in"]["coco_ground_truth"]
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    (tmp_path / "images").mkdir()
    for image in truth["images"]:
        (tmp_path / "images" / image["file_name"]).touch()
    ids = coco_objects.category_ids(str(tmp_path), "val")
    return coco_objects.open_coco(str(tmp_path), "val", ""), ids


def rebuilt(stored, ids):
    """The detections, made anew from arrays as a detector gives them."""
    rows = []
    for image in stored["in"]["coco_ground_truth"]["images"]:
        own = [
            d for d in stored["in"]["coco_detections"] if d["image_id"] == image["id"]
        ]
        boxes = np.array([d["bbox"] for d in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [
            {**d["segmentation"], "counts": d["segmentation"]["counts"].encode()}
            for d in own
        ]
        rows += coco_scores.results(
            image["id"],
            boxes,
            np.array([d["score"] for d in own]),
            np.array([ids.index(d["category_id"]) for d in own], np.int32),
            ids,
            masks,
        )
    return json.loads(json.dumps(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_coco(stored, opened, kind):
    source, ids = opened
    truth = coco_scores.ground_truth(source.labels, ids, source.names)
    own = json.loads(json.dumps(truth)), rebuilt(stored, ids)
    given = stored["in"]["coco_ground_truth"], stored["in"]["coco_detections"]
    before = copy.deepcopy(given)
    for truth, found in (given, own):
        numbers, each = coco_scores.score(truth, found, kind)
        assert list(numbers) == stored["hp"]["stat_names"]
        expected = stored["out"][f"{kind}_stats"]
        assert near(stored, "coco", list(numbers.values()), expected)
        assert list(each) == [c["name"] for c in truth["categories"]]
        expected = stored["out"][f"{kind}_ap_per_category"]
        assert near(stored, "coco", list(each.values()), expected)
    assert given == before


def test_coco_numbers_of_crowds_as_objects_are_others(stored):
    truth = copy.deepcopy(stored["in"]["coco_ground_truth"])
    wrong = stored["out"]["wrong/bbox_stats_crowd_as_normal"]
    found = stored["in"]["coco_detections"]
    right = list(coco_scores.score(truth, found, "bbox")[0].values())
    assert not near(stored, "coco", right, wrong)
    for row in truth["annotations"]:
        row["iscrowd"] = 0
    mistaken = list(coco_scores.score(truth, found, "bbox")[0].values())
    assert near(stored, "coco", mistaken, wrong)


def test_coco_numbers_of_masks_with_boxes_are_others(stored, capsys):
    truth, found = stored["in"]["coco_ground_truth"], stored["in"]["coco_detections"]
    wrong = stored["out"]["wrong/segm_stats_with_box_area"]
    right = list(coco_scores.score(truth, found, "segm")[0].values())
    assert not capsys.readouterr().out
    assert not near(stored, "coco", right, wrong)
    known = COCO()
    known.dataset = copy.deepcopy(truth)
    known.createIndex()
    mistaken = COCOeval(known, known.loadRes(copy.deepcopy(found)), "segm")
    mistaken.evaluate()
    mistaken.accumulate()
    mistaken.summarize()
    assert near(stored, "coco", mistaken.stats, wrong)


def test_coco_without_detections_is_zero(stored):
    truth = stored["in"]["coco_ground_truth"]
    for kind in KINDS:
        some, _ = coco_scores.score(truth, stored["in"]["coco_detections"], kind)
        numbers, each = coco_scores.score(truth, [], kind)
        for name, value in numbers.items():
            assert value == (-1 if some[name] == -1 else 0)
        assert set(each.values()) <= {0.0, -1.0}


# --- VOC ---------------------------------------------------------------------------


def voc_sides(stored):
    """(objects, detections) in continuous coordinates, picture by picture."""
    given, classes = stored["in"], stored["in"]["voc_classes"]
    known, found = [], []
    less = np.array([1, 1, 0, 0])
    for number, image in enumerate(given["voc_images"]):
        rows = []
        for row in (r for r in given["voc_ground_truth"] if r["image"] == image):
            box = [row[side] for side in ("xmin", "ymin", "xmax", "ymax")]
            name = classes.index(row["name"])
            hard = bool(row["difficult"])
            rows.append((np.array(box) - less, name, False, hard, 0.0, None))
        known.append(objects(number, 999, 999, rows, with_shapes=False))
        own = [r for r in given["voc_detections"] if r["image"] == image]
        boxes = np.array([r["box"] for r in own], np.float32).reshape(-1, 4) - less
        scores = np.array([r["score"] for r in own], np.float32)
        numbers = np.array([classes.index(r["name"]) for r in own], np.int32)
        found.append(voc_scores.Detections(boxes, scores, numbers))
    return known, found


RULES = {"11point": True, "allpoint": False}


@pytest.mark.parametrize("rule", RULES)
def test_voc(stored, rule):
    assert np.allclose(voc_scores.IOUS, stored["hp"]["voc_ious"])
    sides, classes = voc_sides(stored), len(stored["in"]["voc_classes"])
    each = voc_scores.table(*sides, classes, RULES[rule])
    assert near(stored, "voc", each, stored["out"][f"voc_{rule}_ap_class_by_iou"])
    numbers = voc_scores.score(*sides, classes, RULES[rule])
    assert list(numbers) == ["AP", "AP50", "AP75"]
    expected = stored["out"][f"voc_{rule}_AP_AP50_AP75"]
    assert near(stored, "voc", list(numbers.values()), expected)


def test_voc_curve(stored):
    known, found = voc_sides(stored)
    found = [voc_scores.printed(one) for one in found]
    recall, precision = voc_scores.curve(voc_scores.match(known, found, 0), 0.5)
    for name, values in (("recall", recall), ("precision", precision)):
        assert near(
            stored, "voc", values, stored["out"][f"voc_{name}_iou50_first_class"]
        )


def test_voc_numbers_of_difficult_objects_as_others_differ(stored):
    known, found = voc_sides(stored)
    expected = stored["out"]["voc_11point_ap_class_by_iou"]
    classes = len(expected)
    easy = [o._replace(difficult=np.zeros_like(o.difficult)) for o in known]
    assert not near(
        stored, "voc", voc_scores.table(easy, found, classes, True), expected
    )


# --- segmentation ------------------------------------------------------------------


def test_miou(reference):
    ref = reference("dense_miou")
    labels = ref["in/raw_labels"]
    if ref["hp/reduce_zero_label"]:
        labels = reduce_zero_label(labels)
    ref.check("reduced_labels", labels)
    classes = ref["hp/num_classes"]
    assert ref["hp/ignore_index"] == 255
    pairs = list(zip(ref["in/pred"], labels, strict=True))
    counts = sum(miou_scores.confusion(p, y, classes) for p, y in pairs)
    ref.check("confusion_int", counts)
    ref.check("area_intersect", np.diag(counts))
    ref.check("area_pred", counts.sum(axis=0))
    ref.check("area_label", counts.sum(axis=1))
    ref.check("area_union", counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts))
    found = miou_scores.scores(counts)
    for name in ("mIoU", "mAcc", "aAcc"):
        ref.check(name, found[name])
    for name in ("iou", "acc"):
        assert (np.isnan(found[name]) == np.isnan(ref[f"out/{name}"])).all()
        there = ~np.isnan(found[name])
        ref.check(name, found[name][there], ref[f"out/{name}"][there])
    each = [miou_scores.scores(miou_scores.confusion(*p, classes)) for p in pairs]
    mistaken = np.mean([one["mIoU"] for one in each])
    wrong = ref["out/mIoU_mean_of_images_not_this"]
    assert abs(mistaken - wrong) <= ref["tol/mIoU"]
    assert abs(found["mIoU"] - wrong) > ref["tol/mIoU"]


def test_windows(reference):
    ref = reference("dense_miou")
    for i, case in enumerate(ref["in/window_cases_h_w_crop_stride"].tolist()):
        found = miou_scores.windows(*case)
        ref.check(f"windows_{i}", found)
        visits = np.zeros(case[:2], int)
        for y1, x1, y2, x2 in found:
            visits[y1:y2, x1:x2] += 1
        assert visits.min() == 1
        ref.check(f"window_count_max_{i}", visits.max())
