"""Annotated sets: opened, checked, and what is wrong with them said in a sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from mixjax.data import ade20k, coco_objects, sources, voc_objects
from mixjax.data.decode import Unreadable
from mixjax.data.scenes import rasterise
from mixjax.errors import UsageError
from tests.support import annotated_sets


def raises(sentence):
    """A UsageError of one sentence that says `sentence`, a regular expression."""
    return pytest.raises(UsageError, match=rf"(?s)\A(?!.*\n).*{sentence}.*[.?]\Z")


# --- COCO --------------------------------------------------------------------------


def test_coco_in_its_own_folders(tmp_path):
    annotated_sets.save_coco(tmp_path, annotated_sets.coco())
    source = sources.open_source(f"coco:{tmp_path}", "train2017", "")
    assert (source.size, source.classes) == (3, 3)
    assert source.names == ("cat", "dog", "owl")
    assert coco_objects.category_ids(str(tmp_path), "train2017 | x") == (3, 7, 12)
    five, seven, nine = (source.read(i)[1] for i in range(3))
    assert [o.id for o in source.labels] == [5, 7, 9]
    assert source.title(2).endswith("train2017/9.jpg")
    assert source.read(2)[0] == (tmp_path / "train2017/9.jpg").read_bytes()
    assert seven.boxes.shape == (0, 4) and seven.shapes == ()
    assert five.crowd.tolist() == [True]
    assert nine.classes.tolist() == [1, 0, 1] and nine.classes.dtype == np.int32
    assert nine.crowd.tolist() == [False, False, True]
    np.testing.assert_array_equal(nine.boxes, [[4, 4, 12, 12]] * 3)
    assert nine.boxes.dtype == nine.area.dtype == np.float32
    assert len(nine.shapes[1]) == 1  # without the outlines that are none
    square = np.zeros((24, 32), bool)
    square[4:12, 4:12] = True
    np.testing.assert_array_equal(rasterise(nine.shapes[1], 24, 32), square)
    assert rasterise(nine.shapes[2], 24, 32).all()


def test_coco_for_training_is_without_pictures_of_nothing_or_crowds(tmp_path):
    annotated_sets.save_coco(tmp_path, annotated_sets.coco())
    source = coco_objects.open_coco(str(tmp_path), "train2017", "")
    kept = coco_objects.for_training(source)
    assert [o.id for o in kept.labels] == [9] and kept.read(0)[1].id == 9
    with raises("contains an object outside crowds"):
        coco_objects.for_training(coco_objects.subset(source, np.array([0, 1])))


def test_coco_of_boxes_alone(tmp_path):
    content = annotated_sets.coco()
    for row in content["annotations"]:
        row["segmentation"] = []
    del content["annotations"][0]["segmentation"]
    annotated_sets.save_coco(tmp_path, content)
    nine = coco_objects.open_coco(str(tmp_path), "train2017", "").read(2)[1]
    assert len(nine.boxes) == 4 and nine.shapes == ()


def test_coco_sample(shared):
    path = str(shared / "data/coco_sample")
    source = coco_objects.open_coco(path, "train", "")
    content = json.loads((shared / "data/coco_sample/annotations.json").read_text())
    assert source.size == len(content["images"]) and source.classes == 80
    ids = coco_objects.category_ids(path, "val2017")
    assert ids[-1] == 90 and len(ids) == 80
    assert [o.id for o in source.labels] == sorted(i["id"] for i in content["images"])
    count = sum(len(o.boxes) for o in source.labels)
    assert count == len(content["annotations"])
    first = next(a for a in content["annotations"] if a["image_id"] == 30)
    x, y, w, h = first["bbox"]
    np.testing.assert_array_equal(source.labels[0].boxes[0], [x, y, x + w, y + h])
    assert ids[source.labels[0].classes[0]] == first["category_id"]
    halves = [coco_objects.open_coco(path, s, "") for s in ("train2017", "val2017")]
    assert [h.size for h in halves] == [21, 21]
    both = sources.open_source(f"coco:{path}", "train2017 + val2017", "")
    assert both.labels[21].id == halves[1].labels[0].id == both.read(21)[1].id
    assert coco_objects.for_training(source).size == 41


def changed(**entries):
    """Changes of a COCO file: {"images_0": {...}} updates; None takes a key away."""

    def change(content):
        for place, values in entries.items():
            key, _, number = place.rpartition("_")
            for name, value in values.items():
                content[key][int(number)][name] = value
                if value is None:
                    del content[key][int(number)][name]
        return content

    return change


BROKEN = {
    "not JSON": (lambda c: '{"images": [', "train2017.json is not JSON"),
    "deep": (lambda c: "[" * 100_000, "is not JSON"),
    "a list": (lambda c: "[]", "needs a list 'images'"),
    "no list": (lambda c: {**c, "annotations": {}}, "needs a list 'annotations'"),
    "no key": (
        changed(annotations_1={"bbox": None}),
        r"train2017.json: annotations\[1\] has no 'bbox'",
    ),
    "no area": (
        changed(annotations_2={"area": None}),
        r"annotations\[2\] has no 'area",
    ),
    "no name": (changed(categories_0={"name": None}), r"categories\[0\] has no 'name'"),
    "no file": (
        changed(images_2={"file_name": None}),
        r"images\[2\] has no 'file_name",
    ),
    "no size": (changed(images_2={"height": 0}), r"images\[2\]: height x width = 0"),
    "no image": (
        changed(annotations_0={"image_id": 4}),
        r"annotations\[0\]: image_id=4 is not in images",
    ),
    "no category": (
        changed(annotations_3={"category_id": 1}),
        r"annotations\[3\]: category_id=1 is not in categories",
    ),
    "twice": (changed(images_1={"id": 9}), r"images\[1\]: id=9 occurs twice"),
    "text": (changed(images_1={"id": "9"}), r"images\[1\]: id='9' is not an integer"),
    "box": (
        changed(annotations_0={"bbox": [1, 2, 3]}),
        r"annotations\[0\]: not enough",
    ),
    "nan": (
        changed(annotations_0={"bbox": [1, 2, 3, float("nan")]}),
        r"annotations\[0\]: nan is not finite",
    ),
    "outline": (
        changed(annotations_0={"segmentation": [["a"] * 6]}),
        r"annotations\[0\]: could not convert",
    ),
    "number": (changed(annotations_0={"segmentation": 3}), r"annotations\[0\]: 'int'"),
    "counts": (
        changed(annotations_2={"segmentation": {"size": [24, 32], "counts": [9]}}),
        r"annotations\[2\]: segmentation counts do not sum",
    ),
    "code": (
        changed(annotations_2={"segmentation": {"size": [24, 32], "counts": "zz"}}),
        r"annotations\[2\]: segmentation counts are not a run-length",
    ),
    "code's size": (
        changed(annotations_2={"segmentation": {"size": [2, 2], "counts": [4]}}),
        r"annotations\[2\]: segmentation of size \[2, 2\]",
    ),
    "entry": (
        lambda c: {**c, "annotations": ["a"]},
        r"annotations\[0\]: the entry is not a JSON object",
    ),
    "picture": (
        changed(images_0={"file_name": "../train2017/9.jpg"}),
        r"lists 1 pictures that are not in .*train2017, the first being \.\./train",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_coco_files_are_told_in_a_sentence(tmp_path, fault):
    change, sentence = BROKEN[fault]
    annotated_sets.save_coco(tmp_path, change(annotated_sets.coco()))
    with raises(sentence):
        coco_objects.open_coco(str(tmp_path), "train2017", "")


def test_coco_splits_that_are_not_there(tmp_path, shared):
    with raises("no such folder"):
        coco_objects.open_coco(str(tmp_path / "none"), "train", "")
    with raises("neither annotations.json nor"):
        coco_objects.open_coco(str(tmp_path), "train", "")
    annotated_sets.save_coco(tmp_path, annotated_sets.coco())
    with raises("no split 'train'; did you mean 'train2017'"):
        coco_objects.open_coco(str(tmp_path), "train", "")
    with raises("no split 'test'"):
        coco_objects.open_coco(str(shared / "data/coco_sample"), "test", "")


# --- VOC ---------------------------------------------------------------------------

ONE = ("dog", 0, (1, 1, 32, 24))


def test_voc_of_two_years(tmp_path):
    root = tmp_path / "VOCdevkit"
    two = [("cat", 1, (3, 4, 10, 12)), ("person", None, (2, 2, 2.5, 9))]
    texts = {
        "000012": annotated_sets.voc_xml([ONE]),
        "000007": annotated_sets.voc_xml(two),
    }
    annotated_sets.save_voc(root, 2007, "trainval", texts)
    annotated_sets.save_voc(
        root, 2012, "trainval", {"2008_000002": annotated_sets.voc_xml([])}
    )
    for path in (root, tmp_path):
        source = sources.open_source(
            f"voc_objects:{path}", "trainval2007+trainval2012", ""
        )
        assert [o.id for o in source.labels] == [12, 7, 2008000002]
    assert source.classes == 20 and source.names[11] == "dog"
    first, second, third = (source.read(i)[1] for i in range(3))
    np.testing.assert_array_equal(first.boxes, [[0, 0, 32, 24]])
    assert (first.height, first.width, first.area[0]) == (24, 32, 768)
    np.testing.assert_array_equal(second.boxes, [[2, 3, 10, 12], [1, 1, 2.5, 9]])
    assert second.difficult.tolist() == [True, False]
    assert second.classes.tolist() == [7, 14] and second.shapes == ()
    assert third.boxes.shape == (0, 4)
    own = voc_objects.open_voc(str(root / "VOC2007"), "trainval", "")
    assert (
        own.size == voc_objects.open_voc(str(root / "VOC2007"), "trainval2007", "").size
    )


def test_names_of_pictures_that_are_no_numbers():
    assert voc_objects.number_of("000005") == 5
    numbers = {voc_objects.number_of(stem) for stem in ("a", "b", "2008_x")}
    assert len(numbers) == 3 and min(numbers) > 2019_999999


BOMB = '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'
BROKEN_XML = {
    "torn": (annotated_sets.voc_xml([ONE])[:-9], "7.xml is not a valid VOC annotation"),
    "entities": (BOMB, "7.xml defines entities"),
    "class": (
        annotated_sets.voc_xml([("dogs", 0, ONE[2])]),
        "'dogs' does not exist; .*'dog'",
    ),
    "number": (annotated_sets.voc_xml([("dog", 0, "abcd")]), "could not convert"),
    "size": ("<annotation/>", "no size/height in annotation"),
}


@pytest.mark.parametrize("fault", BROKEN_XML)
def test_broken_voc_files_are_told_in_a_sentence(tmp_path, fault):
    text, sentence = BROKEN_XML[fault]
    annotated_sets.save_voc(tmp_path, 2007, "test", {"000007": text})
    with raises(sentence):
        voc_objects.open_voc(str(tmp_path), "test2007", "")


def test_voc_without_a_file(tmp_path):
    texts = {f"00000{i}": annotated_sets.voc_xml([ONE]) for i in (1, 2)}
    annotated_sets.save_voc(tmp_path, 2007, "test", texts)
    with raises("no split 'tset2007'; did you mean 'test2007'"):
        voc_objects.open_voc(str(tmp_path), "tset2007", "")
    with raises("no split 'test'; did you mean 'test2007'"):
        voc_objects.open_voc(str(tmp_path), "test", "")
    (tmp_path / "VOC2007/Annotations/000002.xml").unlink()
    with raises("000002.xml cannot be read"):
        voc_objects.open_voc(str(tmp_path), "test2007", "")
    (tmp_path / "VOC2007/JPEGImages/000001.jpg").unlink()
    with raises(r"are missing \(1 of \d+\), such as .*"):
        voc_objects.open_voc(str(tmp_path), "test2007", "")


# --- ADE20K ------------------------------------------------------------------------


def save_ade(root, labels, name="ADE_1", split="training"):
    annotated_sets.picture(root / "images" / split / f"{name}.jpg")
    folder = root / "annotations" / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(folder / f"{name}.png")
    return root


LABELS = np.full((24, 32), 150, np.uint8)


def test_ade20k_counts_from_zero(tmp_path):
    labels = LABELS.copy()
    labels[0, :4] = [0, 1, 255, 2]
    root = save_ade(tmp_path / "ADEChallengeData2016", labels)
    lines = [
        "Idx\tRatio\tTrain\tVal\tName",
        *(f"{i}\t0\t0\t0\tn{i}" for i in range(150)),
    ]
    (root / "objectInfo150.txt").write_text("\n".join(lines))
    for split in ("training", "train"):
        source = sources.open_source(f"ade20k:{tmp_path}", split, "")
        assert (source.size, source.classes, source.names[149]) == (1, 150, "n149")
    found = source.read(0)[1]
    assert found.labels[0, :5].tolist() == [255, 0, 255, 1, 149]
    assert found.labels.dtype == np.uint8 and found.id == "ADE_1"


def test_ade20k_sample(shared):
    path = shared / "data/ade20k_sample"
    source = ade20k.open_ade20k(str(path), "val", "")
    assert (source.size, source.classes, source.names[0]) == (3, 150, "wall")
    raw = np.asarray(Image.open(path / "ADE_val_00000002.png"))
    labels = source.read(1)[1].labels
    assert (labels[raw == 0] == 255).all() and (raw == 0).any()
    np.testing.assert_array_equal(labels[raw > 0] + 1, raw[raw > 0])


def test_broken_label_maps_are_told_in_a_sentence(tmp_path):
    with raises("no split 'test'"):
        ade20k.open_ade20k(str(tmp_path), "test", "")
    with raises("contains no .jpg files"):
        ade20k.open_ade20k(str(tmp_path), "train", "")
    root = save_ade(tmp_path / "a", LABELS + 1)
    with raises("ADE_1.png contains label 151, but the largest is 150"):
        ade20k.open_ade20k(str(root), "train", "").read(0)
    with raises("folder .*images/validation does not exist"):
        ade20k.open_ade20k(str(root), "val", "")
    root = save_ade(tmp_path / "b", np.zeros((24, 32, 3), np.uint8))
    with raises(r"is uint8 \(24, 32, 3\), not a label map"):
        ade20k.open_ade20k(str(root), "train", "").read(0)
    file = root / "annotations/training/ADE_1.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(Unreadable, match="ADE_1.png"):
        ade20k.open_ade20k(str(root), "train", "").read(0)
    file.unlink()
    with raises("1 of the 1 pictures of .* have no label map, .*ADE_1.png"):
        ade20k.open_ade20k(str(root), "train", "")
