"""Evaluators of segmentation and detection, and which data and views go together."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bench.support import dense_pictures
from mixjax import data
from mixjax.data import coco_objects
from mixjax.errors import UsageError
from mixjax.evals import detect, segment
from mixjax.sharding import meshes
from mixjax.state import Method
from tests.support import tiny
from tests.support.tiny_dense import built, pictures, small

COUNT = 5  # detections of a picture


def sets_of(name, source, **changes):
    config = small(name, data__eval_batch=8)
    config.data.source = source
    config.data.update(changes)
    return data.make(config.data, batch=1, seed=0, mesh=meshes.make(fsdp=1))


def method_of(predict) -> Method:
    fields = dict.fromkeys(Method._fields[:-1])
    return Method(**fields, predict=predict)


def guesses(known):
    """Detections of all pictures [N, COUNT]: boxes near objects, some of them wrong."""
    rng = np.random.default_rng(3)
    boxes = rng.uniform(0, 40, (len(known), COUNT, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(8, 24, (len(known), COUNT, 2))
    classes = rng.integers(0, 3, (len(known), COUNT))
    for i, objects in enumerate(known):
        n = min(len(objects.boxes), COUNT - 1)
        boxes[i, :n] = objects.boxes[:n] + rng.normal(0, 1, (n, 4))
        classes[i, :n] = objects.classes[:n]
    boxes = boxes.clip(0, dense_pictures.SIDE).astype(np.float32)
    scores = rng.permutation(len(known) * COUNT).reshape(len(known), COUNT)
    masks = rng.uniform(0.3, 1, (len(known), COUNT, 28, 28)).astype(np.float32)
    found = {"original": boxes, "scores": scores.astype(np.float32) / scores.size}
    valid = rng.random((len(known), COUNT)) < 0.9
    return found | {"classes": classes, "masks": masks, "valid": valid}


def written_by_hand(known, found, ids):
    """The result file of the same detections, boxes alone, made without our code."""
    rows = []
    for i, objects in enumerate(known):
        for j in np.flatnonzero(found["valid"][i]):
            x0, y0, x1, y1 = map(float, found["original"][i, j])
            row = {"image_id": objects.id, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            row["category_id"] = ids[found["classes"][i, j]]
            rows.append(row | {"score": float(found["scores"][i, j])})
    return rows


def test_numbers_are_those_of_a_file_written_by_hand(tmp_path, capsys):
    folder = pictures() / "coco"
    sets = sets_of("vitdet", f"coco:{folder}")
    known = coco_objects.open_coco(str(folder), "train", "").labels
    found = guesses(known)
    arrays = {k: jnp.asarray(v) for k, v in found.items()}

    def predict(state, batch):
        mine = {k: v[batch["index"]] for k, v in arrays.items()}
        return mine | {"overflow": jnp.zeros(len(batch["index"]), jnp.int32)}

    how = dict(protocol="detection_coco", metric="coco", examples=0, precise=0)
    how |= dict(recipe={}, sets=sets, method=method_of(predict))
    how |= dict(mesh=meshes.make(fsdp=1), check=lambda: None, workdir=tmp_path)
    with jax.transfer_guard("disallow"):
        run = detect.make(**how)
        metrics = run({}, 7, None)
    assert metrics["detection_coco/examples"] == dense_pictures.PICTURES
    truth = COCO(str(folder / "annotations.json"))
    rows = written_by_hand(known, found, (3, 7, 12))
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    for name, place in (("AP", 0), ("AP50", 1), ("AP75", 2), ("APm", 4)):
        ours = metrics[f"detection_coco/{name}"]
        np.testing.assert_allclose(ours, 100 * evaluation.stats[place], atol=1e-6)
    assert 5 < metrics["detection_coco/AP"] < 95
    assert 0 < metrics["detection_coco/APmask50"] < 100
    capsys.readouterr()
    saved = json.loads((tmp_path / "detections/detection_coco_7.json").read_text())
    boxes = lambda rows: sorted((r["image_id"], *r["bbox"]) for r in rows)
    np.testing.assert_allclose(boxes(saved), boxes(rows))
    again = COCOeval(truth, truth.loadRes(saved), "segm")
    assert len(again.cocoDt.anns) == len(rows)


def test_voc_counts_difficult_objects_and_whole_pixels(tmp_path):
    sets = sets_of(
        "c4_voc", f"voc_objects:{pictures()}/VOCdevkit", eval_split="trainval2007"
    )
    known = sets.test(0).source.labels
    room = max(len(o.boxes) for o in known)

    def whole(values, width=()):
        padded = np.zeros((len(known), room, *width), np.float32)
        for row, mine in zip(padded, values, strict=True):
            row[: len(mine)] = mine
        return jnp.asarray(padded)

    found = {"original": whole([o.boxes for o in known], (4,))}
    found["classes"] = whole([o.classes for o in known]).astype(jnp.int32)
    found["valid"] = whole([np.ones(len(o.boxes)) for o in known]) > 0
    found["scores"] = found["valid"].astype(jnp.float32)

    def predict(state, batch):
        mine = {k: v[batch["index"]] for k, v in found.items()}
        return mine | {"overflow": jnp.zeros(len(batch["index"]), jnp.int32)}

    for metric in ("voc07", "voc12"):
        run = detect.make(
            protocol="detection_voc",
            metric=metric,
            examples=0,
            precise=0,
            recipe={},
            sets=sets,
            method=method_of(predict),
            mesh=meshes.make(fsdp=1),
            check=lambda: None,
            workdir=tmp_path,
        )
        metrics = run({}, 1, None)
        assert metrics["detection_voc/AP"] == pytest.approx(100)


# --- segmentation --------------------------------------------------------------------


def naive(logits_of, image, label_shape, crop, stride):
    """Sliding windows one at a time, every resize as jax.image has it."""
    height, width = image.shape[:2]
    total, visits = 0, np.zeros((height, width, 1))
    starts = lambda side: [
        min(i * stride, max(side - crop, 0))
        for i in range(max(side - crop + stride - 1, 0) // stride + 1)
    ]
    for y in starts(height):
        for x in starts(width):
            window = np.zeros((crop, crop, 3), np.uint8)
            part = image[y : y + crop, x : x + crop]
            window[: part.shape[0], : part.shape[1]] = part
            small = logits_of(window)
            large = jax.image.resize(small, (crop, crop, small.shape[-1]), "linear")
            whole = np.zeros((height, width, small.shape[-1]))
            seen = np.asarray(large)[: part.shape[0], : part.shape[1]]
            whole[y : y + crop, x : x + crop] = seen
            total = total + whole
            visits[y : y + crop, x : x + crop] += 1
    mean = total / visits
    size = (*label_shape, mean.shape[-1])
    return np.asarray(jax.image.resize(mean, size, "linear", antialias=False))


@pytest.mark.parametrize("size", [(64, 90), (33, 200), (64, 64), (150, 70)])
def test_sliding_windows_are_one_matrix_for_each_axis(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
    weights = rng.normal(size=(3, 5)).astype(np.float32)
    out, crop, stride = (size[0] * 2 - 7, size[1] + 11), 64, 40

    def logits_of(window):
        cells = window.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))  # [16, 16, 3]
        return (cells / 50) @ weights

    wanted = naive(logits_of, image, out, crop, stride)
    places = segment.miou_scores.windows(*size, crop, stride)
    logits = np.stack([logits_of(w) for w in segment.cut(image, places, crop)])
    spans = [sorted({(p[a], p[a + 2]) for p in places.tolist()}) for a in (0, 1)]
    matrices = [
        segment.axis_matrix(spans[a], crop, 16, size[a], out[a]) for a in (0, 1)
    ]
    grid = logits.reshape(len(spans[0]), len(spans[1]), *logits.shape[1:])
    n, m, h, w, k = grid.shape
    flat = grid.transpose(0, 2, 1, 3, 4).reshape(n * h, m * w, k)
    whole = np.einsum("yp,pqk,xq->yxk", matrices[0], flat, matrices[1])
    np.testing.assert_allclose(whole, wanted, atol=2e-4)
    classes = np.asarray(segment.assemble(grid, *matrices))
    assert (classes == wanted.argmax(axis=-1)).mean() > 0.999


def test_a_window_is_zero_beyond_a_small_picture():
    """After the normalisation, as in training; and all windows come back in order."""
    view = segment.parse("segment_fit(8, longest=64) | normalize", "view")
    method = method_of(lambda state, batch: batch["views"][0])
    predict = segment.window_predictor(method, view, meshes.make(fsdp=1), 8)
    windows = np.full((11, 16, 16, 3), 255, np.uint8)
    windows[:, :, :, 0] = np.arange(11)[:, None, None]
    sizes = np.tile(np.float32([[16, 16]]), (11, 1))
    sizes[4] = 5, 16
    found = predict({}, windows, sizes)
    assert found.shape == (11, 16, 16, 3)
    assert (found[4, 5:] == 0).all() and (found[4, :5, :, 1] > 1).all()
    assert (np.diff(found[:, 0, 0, 0]) > 0).all() and (found[3] != 0).all()


def test_a_perfect_segmenter_has_all(tmp_path):
    """And each picture counts once, whatever the windows share."""
    sets = sets_of("uper", f"ade20k:{pictures()}/ade")
    colours = (jnp.asarray(dense_pictures.COLOURS, jnp.float32) / 255 - 0.45) / 0.225

    def predict(state, batch):
        image = batch["views"][0].reshape(-1, 16, 4, 16, 4, 3).mean(axis=(2, 4))
        near = -jnp.square(image[..., None, :] - colours).sum(axis=-1)
        return jnp.pad(near, ((0, 0),) * 3 + ((0, 147),), constant_values=-1e3)

    how = dict(protocol="seg", view="segment_fit(64, longest=256) | normalize")
    how |= dict(crop=64, stride=32, at_once=3, examples=0, sets=sets)
    how |= dict(method=method_of(predict), mesh=meshes.make(fsdp=1))
    with jax.transfer_guard("disallow"):
        run = segment.make(**how, check=lambda: None)
        metrics = run({}, 1, None)
    assert metrics["seg/examples"] == dense_pictures.PICTURES
    assert metrics["seg/mIoU"] > 75  # edges are coarse: a logit shows 4 x 4 pixels
    assert metrics["seg/aAcc"] > 85


# --- what goes together --------------------------------------------------------------


def test_annotated_pictures_are_pictures(tmp_path):
    """Views that move nothing along see them without labels."""
    config = tiny.config(steps=2)
    config.data.source = f"coco:{pictures()}/coco"
    config.data.on_device = False
    config.data.views = ("decode_crop(16, channels=1) | normalize((.3,), (.4,))",)
    view = "decode_center(16, 18, channels=1) | normalize((.3,), (.4,))"
    config.data.eval_view, config.data.eval_split = view, "val"
    config.batch = 8
    sets = data.make(config.data, batch=8, seed=0, mesh=meshes.make(fsdp=1))
    assert sets.classes == 0 and sets.size == dense_pictures.PICTURES
    folder = tiny.run(tmp_path / "run", config)
    assert len(tiny.metrics(folder)) > 0


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("vitdet", {"data__source": "digits"}, "neither boxes nor segmentation maps"),
        ("vitdet", {"model__box_head__classes": 5}, "model.box_head.classes=5"),
        ("vitdet", {"model__rpn_head__anchors": 5}, "anchors=5, .* make 3; set it"),
        ("vitdet", {"method__boxes__loss": "l3"}, "method.boxes.loss"),
        ("vitdet", {"method__boxes__loss_weights": (1.0, 1.0)}, "loss_weights has 2"),
        ("vitdet", {"method__padding": "sean"}, "seen"),
        ("c4", {"data__on_device": True}, "data.on_device=True keeps pictures without"),
        ("uper", {"method__auxiliary": 0.0}, "method.auxiliary=0.0"),
        ("uper", {"method__over": "every"}, "method.over"),
    ],
)
def test_what_is_refused(tmp_path, name, changes, said):
    config = small(name, **changes)
    with pytest.raises(UsageError, match=said):
        tiny.run(tmp_path / "run", config)


def test_masks_need_outlines(tmp_path):
    config = small("vitdet")
    views = [v.replace("mask_side=56", "mask_side=0") for v in config.data.views]
    config.data.views = tuple(views)
    with pytest.raises(UsageError, match="learns masks, which data.views"):
        tiny.run(tmp_path / "run", config)


def test_precise_statistics_are_of_training_batches():
    """As the weights are now: two batches replace what has been running."""
    config, method, _, state = built("c4_voc")
    mesh = meshes.make(fsdp=1)
    sets = data.make(config.data, batch=1, seed=0, mesh=mesh)  # as evaluate opens them
    state = jax.device_put(state, meshes.replicated(mesh))
    refresh = detect.refresher(method, sets.training(8), 2, 0.9, mesh)
    with jax.transfer_guard("disallow"):
        found = refresh(state)
        found, old = jax.device_get((found.stats, state.stats))
    assert jax.tree.structure(found) == jax.tree.structure(old)
    for new, before in zip(jax.tree.leaves(found), jax.tree.leaves(old), strict=True):
        assert np.isfinite(new).all() and np.abs(new - before).max() > 1e-3
