"""What a detector learns from in one picture: labels of anchors, and sampled regions.

Everything here stands for a constant in the loss: no gradient goes through it.
Source: Ren et al., 2015 (Faster R-CNN), in the form of detectron2.
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
    """S regions of a picture that the heads look at; some may not be valid."""

    boxes: Array  # [S, 4]
    valid: Array  # [S] bool
    positive: Array  # [S] bool: shows an object; these come first
    match: Array  # [S] int32, which object
    classes: Array  # [S] int32, its class; any number where not positive
    truth: Array  # [S, 4], its box
    own: Array  # [S] bool: the region is an object's own box


def anchor_targets(
    key: Array, anchors: Array, hw: Array, targets: dict, rule
) -> tuple[Array, Array]:
    """(labels [N] int32: 1 object, 0 none, -1 not sampled; the object's box [N, 4]).

    anchors: [N, 4]. rule: low, high, low_quality, inside (whether anchors that leave
    the picture `hw` are left out), samples, fraction.
    """
    gt, present = targets["boxes"], targets["present"]
    overlap = iou(gt, anchors, present, True)  # [M, N]
    how = {"thresholds": (rule.low, rule.high), "low_quality": rule.low_quality}
    how["inside"] = within(anchors, hw, 0.0) if rule.inside else True
    index, label = match(overlap, valid_gt=present, **how)
    how = {"count": rule.samples, "fraction": rule.fraction}
    drawn = sample_weights(key, label, **how) > 0
    return jnp.where(drawn, label, -1), gt[index]


def labelled(
    boxes: Array, valid: Array, targets: dict, own: Array, threshold: float
) -> Regions:
    """All `boxes` as regions: positive where the best IoU is `threshold` or more."""
    gt, present = targets["boxes"], targets["present"]
    overlap = iou(gt, boxes, present, valid)
    how = {"thresholds": (threshold, threshold), "low_quality": False, "inside": True}
    index, label = match(overlap, valid_gt=present, **how)
    positive = (label == 1) & valid
    found = targets["classes"][index], gt[index]
    return Regions(boxes, valid, positive, index, *found, own)


def sampled(key: Array, boxes: Array, valid: Array, targets: dict, rule, threshold):
    """`rule.samples` regions of `boxes` and of the objects' own; positives first.

    rule: samples, fraction (of positives, at most). The objects are appended before
    matching, so that each has a region from the first step on.
    """
    gt, present = targets["boxes"], targets["present"]
    every = jnp.concatenate([boxes, gt])  # [R + M, 4]
    known = jnp.concatenate([valid, present])
    own = jnp.arange(len(every)) >= len(boxes)
    regions = labelled(every, known, targets, own, threshold)
    label = jnp.where(known, regions.positive.astype(jnp.int32), -1)
    how = {"count": rule.samples, "fraction": rule.fraction}
    index, drawn, positive = sample(key, label, **how)
    taken = jax.tree.map(lambda x: x[index], regions)
    return taken._replace(valid=drawn, positive=positive)
