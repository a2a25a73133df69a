"""Training targets of a detector in one image: labelled anchors, sampled regions.

All of it is constant in the loss: no gradient passes through.
Source: Ren et al., 2015 (Faster R-CNN), as implemented in detectron2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.dense.anchors import inside as within
from mixjax.dense.boxes import iou
from mixjax.dense.matching import match, sample, sample_weights

Array = jax.Array
UNIT = (1.0, 1.0, 1.0, 1.0)  # weights of an anchor's deltas


class Regions(NamedTuple):
    """The S regions of an image that the heads of a stage read."""

    boxes: Array  # [S, 4]
    valid: Array  # [S] bool, False for padding
    positive: Array  # [S] bool, whether it shows an object; positives come first
    match: Array  # [S] int32, the index of its best object
    classes: Array  # [S] int32, that object's class; meaningless where not positive
    truth: Array  # [S, 4], that object's box
    from_truth: Array  # [S] bool, whether the region is itself a ground-truth box


def anchor_targets(
    key: Array, anchors: Array, hw: Array, targets: dict, rule
) -> tuple[Array, Array]:
    """(labels [N] int32: 1 object, 0 background, -1 not sampled; truth boxes [N, 4]).

    anchors: [N, 4]. rule: low, high, low_quality, inside (whether to leave out anchors
    that cross the border of the image, hw [2]), samples, fraction.
    """
    truth, present = targets["boxes"], targets["present"]
    overlap = iou(truth, anchors, present, True)  # [M, N]
    index, label = match(
        overlap,
        thresholds=(rule.low, rule.high),
        low_quality=rule.low_quality,
        valid_gt=present,
        inside=within(anchors, hw, 0.0) if rule.inside else True,
    )
    weights = sample_weights(key, label, count=rule.samples, fraction=rule.fraction)
    return jnp.where(weights > 0, label, -1), truth[index]


def labelled(
    boxes: Array, valid: Array, targets: dict, from_truth: Array, threshold: float
) -> Regions:
    """All `boxes` as regions; positive where the best IoU reaches `threshold`."""
    truth, present = targets["boxes"], targets["present"]
    overlap = iou(truth, boxes, present, valid)  # [M, R]
    index, label = match(
        overlap,
        thresholds=(threshold, threshold),  # so no region is ignored
        low_quality=False,
        valid_gt=present,
        inside=True,
    )
    positive = (label == 1) & valid
    classes = targets["classes"][index]
    return Regions(boxes, valid, positive, index, classes, truth[index], from_truth)


def sampled(key: Array, boxes: Array, valid: Array, targets: dict, rule, threshold):
    """Samples `rule.samples` regions from `boxes` and the ground truth.

    rule: samples, fraction (of positives, at most). Positives come first. Ground-truth
    boxes are appended before matching, so that every object has a positive region from
    the first step on, when proposals are still random.
    """
    truth, present = targets["boxes"], targets["present"]
    candidates = jnp.concatenate([boxes, truth])  # [R + M, 4]
    usable = jnp.concatenate([valid, present])
    from_truth = jnp.arange(len(candidates)) >= len(boxes)
    regions = labelled(candidates, usable, targets, from_truth, threshold)
    label = jnp.where(usable, regions.positive.astype(jnp.int32), -1)
    index, drawn, positive = sample(
        key, label, count=rule.samples, fraction=rule.fraction
    )
    chosen = jax.tree.map(lambda x: x[index], regions)
    return chosen._replace(valid=drawn, positive=positive)
