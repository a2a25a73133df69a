"""Boxes, matching, suppression, losses and masks against detectron2's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_masks

from mixjax.dense import anchors, boxes, losses, masks
from mixjax.dense.detections import detections
from mixjax.dense.matching import match
from mixjax.dense.nms import nms
from mixjax.dense.proposals import proposals
from mixjax.dense.roi_align import levels

UNIT = (1.0, 1.0, 1.0, 1.0)
CODES = {1: UNIT, 10: (10, 10, 5, 5), 20: (20, 20, 10, 10), 30: (30, 30, 15, 15)}
CROP = 112  # side of a mask that the host hands over
SHARE = 0.03  # of target pixels that may differ from rasterised polygons


@pytest.fixture
def ref(reference):
    return reference("dense_boxes")


def names(ref):
    return [f"p{i}" for i, _ in enumerate(ref["hp/strides"], start=2)]


def map_sizes(ref):
    return [tuple(-(-ref["hp/image_hw"] // s)) for s in ref["hp/strides"]]


def level_anchors(ref):
    sizes = [(s,) for s in ref["hp/sizes_fpn"]]
    given = ref["hp/strides"], sizes, ref["hp/aspect_ratios"], ref["hp/offset"]
    return anchors.level_anchors(map_sizes(ref), *given)


def test_anchors(ref):
    ratios = ref["hp/aspect_ratios"]
    for i, name in enumerate(names(ref)):
        ref.check(f"anchors_{name}", level_anchors(ref)[i])
        cells = anchors.cell_anchors([ref["hp/sizes_fpn"][i]], ratios)
        ref.check(f"cell_anchors_{name}", cells)
        standard = anchors.cell_anchors([32 * 2**i], ratios)
        ref.check(f"cell_anchors_standard_{name}", standard)


def test_anchors_of_one_map(ref):
    at = names(ref).index("p4")
    one = [map_sizes(ref)[at]], [ref["hp/strides"][at]]
    ratios, own = ref["hp/aspect_ratios"], [ref["hp/sizes_fpn"][:1]]
    (all_sizes,) = anchors.level_anchors(*one, [ref["hp/sizes_c4"]], ratios, 0.0)
    ref.check("anchors_c4", all_sizes)
    (half,) = anchors.level_anchors(*one, own, ratios, 0.5)
    ref.check("anchors_p4_offset_half", half)


@pytest.mark.parametrize("code", CODES)
def test_codec(ref, code):
    source, target = ref["in/src_boxes"], ref["in/tgt_boxes"]
    weights = CODES[code]
    encode = jax.jit(lambda t, s: boxes.encode(t, s, weights))
    decode = jax.jit(lambda d, s: boxes.decode(d, s, weights))
    ref.check(f"encode_w{code}", encode(target, source))
    ref.check(f"decode_w{code}", decode(ref[f"in/deltas_w{code}"], source))


def test_codec_by_class(ref):
    deltas = ref["in/deltas_per_class_w10"]
    each = deltas.reshape(len(deltas), -1, 4)
    source = ref["in/src_boxes"][:, None]
    found = jax.jit(lambda d, s: boxes.decode(d, s, CODES[10]))(each, source)
    ref.check("decode_per_class_w10", found.reshape(deltas.shape))


def test_giou(ref):
    found = jax.jit(boxes.giou)(ref["in/src_boxes"], ref["in/tgt_boxes"])
    ref.check("giou_loss_pairs", 1 - found)


def matched(low_quality, rows):
    """Matches boxes with ground truth, of which `rows` says what is valid."""

    def run(gt, every):
        overlap = boxes.iou(gt, every, rows, True)
        how = {"thresholds": (0.3, 0.7), "valid_gt": rows, "inside": True}
        return overlap, *match(overlap, low_quality=low_quality, **how)

    return jax.jit(run)


def test_matching(ref):
    gt, every = ref["in/gt_boxes"], np.concatenate(level_anchors(ref))
    rows = np.ones(len(gt), bool)
    overlap, index, label = matched(True, rows)(gt, every)
    ref.check("iou_gt_anchors", overlap)
    ref.check("rpn_match_index", index)
    ref.check("rpn_match_label", label)
    ref.check("rpn_matched_gt_boxes", gt[index])
    _, index, label = matched(False, rows)(gt, every)
    ref.check("rpn_match_index", index)
    ref.check("rpn_match_label_no_low_quality", label)


def test_matching_with_nothing(ref):
    every = ref["in/src_boxes"][: len(ref["out/empty_match_index"])]
    _, index, label = matched(True, np.zeros(3, bool))(ref["in/gt_boxes"][:3], every)
    ref.check("empty_match_index", index)
    ref.check("empty_match_label", label)


def test_levels(ref):
    found = jax.jit(lambda x: levels(x, lowest=2, highest=5))(ref["in/level_boxes"])
    ref.check("levels", found - 2)


@pytest.mark.parametrize("percent", [70, 50, 30])
@pytest.mark.parametrize("grouped", ["", "grouped_"])
def test_nms(ref, percent, grouped):
    given, scores = ref["in/nms_boxes"], ref["in/nms_scores"]
    group = ref["in/nms_groups"] * bool(grouped)
    every = np.ones(len(scores), bool)
    how = {"threshold": percent / 100, "count": len(scores)}
    index, valid = jax.jit(lambda *a: nms(*a, **how))(given, scores, group, every)
    ref.check(f"nms_keep_{grouped}{percent}", index[valid])


@pytest.mark.parametrize("mode", ["train", "test"])
def test_proposals(ref, mode):
    logits, deltas = (
        tuple(ref[f"in/rpn_{kind}_{name}"] for name in names(ref))
        for kind in ("logits", "deltas")
    )
    at, every = ["train", "test"].index(mode), level_anchors(ref)
    how = {"before": int(ref["hp/rpn_pre_nms_topk_train_test"][at])}
    how["after"] = int(ref["hp/rpn_post_nms_topk_train_test"][at])
    how["threshold"] = ref["hp/rpn_nms"]
    one = lambda logits, deltas, hw: proposals(logits, deltas, every, hw, **how)
    found = jax.jit(jax.vmap(one))(logits, deltas, ref["hp/valid_hw"])
    for i, (where, scores, valid) in enumerate(zip(*found, strict=True)):
        assert len(valid) == how["after"]
        ref.check(f"proposals_{mode}_{i}", where[valid])
        ref.check(f"proposal_logits_{mode}_{i}", scores[valid])


def test_rpn_losses(ref):
    logits, deltas = (
        np.concatenate([ref[f"in/rpn_{kind}_{name}"] for name in names(ref)], axis=1)
        for kind in ("logits", "deltas")
    )
    labels, gt = ref["in/rpn_sampled_labels"], ref["out/rpn_matched_gt_boxes"]

    @jax.jit
    def run(logits, deltas):
        target = boxes.encode(gt, np.concatenate(level_anchors(ref)), UNIT)
        places = ref["hp/rpn_samples"] * len(labels)
        return losses.rpn_losses(
            logits, deltas, labels, target[None], normaliser=places, beta=0.0
        )

    objectness, box = run(logits, deltas)
    ref.check("loss_rpn_cls", objectness)
    ref.check("loss_rpn_loc", box)


def regions(ref):
    """Regions of both images, one after the other, with what they should become."""
    where = np.concatenate([ref["in/roi_boxes_0"], ref["in/roi_boxes_1"]])
    classes = ref["in/roi_gt_classes"]
    found = {"classes": classes, "positive": classes < ref["hp/num_classes"]}
    found |= {"valid": np.ones(len(where), bool), "proposals": where}
    return found | {"targets": ref["in/roi_gt_boxes"]}


LOSSES = {
    "specific": ("l1", 0.0),
    "agnostic": ("l1", 0.0),
    "agnostic_giou": ("giou", 0.0),
    "specific_smooth": ("l1", 1.0),
}


@pytest.mark.parametrize("variant", LOSSES)
def test_box_losses(ref, variant):
    deltas = ref[f"in/roi_deltas_{variant.split('_')[0]}"]
    kind, beta = LOSSES[variant]
    how = {"weights": ref["hp/roi_weights"], "kind": kind, "beta": beta}
    run = jax.jit(lambda *a, **given: losses.box_losses(*a, **given, **how))
    entropy, box = run(ref["in/roi_cls_logits"], deltas, **regions(ref))
    ref.check(f"loss_cls_{variant}", entropy)
    ref.check(f"loss_box_reg_{variant}", box)


@pytest.mark.parametrize("variant", ["specific", "agnostic"])
@pytest.mark.parametrize("image", [0, 1])
def test_detections(ref, variant, image):
    start = image * len(ref["in/roi_boxes_0"])
    where = ref[f"in/roi_boxes_{image}"]
    own = slice(start, start + len(where))
    how = {"score_threshold": ref["hp/score_thresh"], "count": int(ref["hp/topk"])}
    how |= {"nms_threshold": ref["hp/det_nms"], "candidates": 4000}

    @jax.jit
    def run(logits, deltas, where):
        each = deltas.reshape(len(where), -1, 4)
        moved = boxes.decode(each, where[:, None], ref["hp/roi_weights"])
        moved, every = moved.reshape(deltas.shape), jnp.ones(len(where), bool)
        probs, hw = jax.nn.softmax(logits), ref["hp/valid_hw"][image]
        return detections(moved, probs, hw, valid=every, **how)

    deltas = ref[f"in/roi_deltas_{variant}"][own]
    found = run(ref["in/roi_cls_logits"][own], deltas, where)
    for name in ("boxes", "scores", "classes", "roi"):
        value = getattr(found, name)[found.valid]
        ref.check(f"det_{variant}_{name}_{image}", value)


def rasterised(ref, side, where, index):
    """Polygons drawn on a grid of `side` cells inside boxes: [R, side, side]."""
    drawn = []
    for (x0, y0, x1, y1), i in zip(where, index, strict=True):
        scale = np.array([x1 - x0, y1 - y0]) / side
        names = sorted(k for k in ref.arrays if k.startswith(f"in/polygon_{i}_"))
        shape = [(ref[k].reshape(-1, 2) - (x0, y0)) / scale for k in names]
        shape = [p.ravel().tolist() for p in shape]
        runs = coco_masks.merge(coco_masks.frPyObjects(shape, side, side))
        drawn.append(coco_masks.decode(runs))
    return np.stack(drawn)


def differing(ref, side, crops, index):
    """The share of target pixels that are not as the reference has them."""
    given = crops, ref["out/polygon_boxes"], index, ref["in/mask_boxes"]
    found = jax.jit(lambda *a: masks.mask_targets(*a, side))(*given)
    assert set(np.unique(found)) <= {0, 1}
    return np.mean(found != ref[f"out/mask_targets_{side}"])


# What pycocotools says of itself under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("side", [28, 14])
def test_mask_targets(ref, side):
    gt, index = ref["out/polygon_boxes"], ref["in/mask_gt_index"]
    crops = rasterised(ref, CROP, gt, range(len(gt)))
    assert differing(ref, side, crops, index) <= SHARE
    # Objects that change places, or axes that do, are told apart.
    assert differing(ref, side, crops, np.roll(index, 1)) > SHARE
    assert differing(ref, side, crops.transpose(0, 2, 1), index) > SHARE


def test_mask_targets_from_pixels(ref):
    """Objects as small as these lose a little more as masks of pixels."""
    full, gt = ref["out/full_masks"].astype(bool), ref["out/polygon_boxes"]
    crops = [masks.crop_mask(m, b, CROP) for m, b in zip(full, gt, strict=True)]
    assert differing(ref, 28, np.stack(crops), ref["in/mask_gt_index"]) <= 1.5 * SHARE


def test_mask_loss(ref):
    target, index = ref["out/mask_targets_28"], ref["in/mask_gt_index"]
    classes = ref["in/gt_classes"][index]
    logits = ref["in/mask_logits"].transpose(0, 2, 3, 1)
    every = np.ones(len(index), bool)
    run = jax.jit(losses.mask_loss)
    ref.check("loss_mask", run(logits, target, classes, every))


def test_paste(ref):
    height, width = ref["hp/image_hw"]
    given = zip(ref["in/paste_probs"], ref["in/paste_boxes"], strict=True)
    found = [masks.paste(probs, box, height, width) for probs, box in given]
    ref.check("pasted_masks", np.stack(found))
