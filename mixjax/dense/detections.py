"""Selects the detections of one image from the scores and boxes of its regions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.dense import ranking
from mixjax.dense.nms import nms

Array = jax.Array


class Detections(NamedTuple):
    """The detections of an image by descending score; padding is 0 and not valid."""

    boxes: Array  # [count, 4] float32, clipped to the image; may be empty
    scores: Array  # (count,) float32
    classes: Array  # (count,) int32
    valid: Array  # (count,) bool
    roi: Array  # (count,) int32, the region of each
    overflow: Array  # () int32, pairs above the score threshold beyond `candidates`


def detections(
    boxes: Array,
    probs: Array,
    hw: Array,
    *,
    valid: Array,
    score_threshold: float,
    nms_threshold: float,
    count: int,
    candidates: int,
) -> Detections:
    """The `count` best pairs of region and class after NMS within each class.

    boxes: decoded, [R, 4 K] by class or [R, 4] for all classes; probs: [R, K + 1],
    background last; hw: [2], the size of the image without padding, to which boxes are
    clipped; valid: (R,) bool. Only scores strictly above the threshold count, and of
    those the `candidates` best, a fixed number that replaces detectron2's lists.
    """
    k = probs.shape[1] - 1
    boxes = box_ops.clip(boxes.reshape(len(boxes), -1, 4), hw)  # [R, K or 1, 4]
    boxes = jnp.broadcast_to(boxes, (len(boxes), k, 4))
    scores = probs[:, :k].astype(jnp.float32)
    passed = (scores > score_threshold) & jnp.isfinite(boxes).all(axis=-1)
    passed = (passed & valid[:, None]).ravel()  # [R K]
    # A pair is region * K + class.
    pair, ok = ranking.top(scores.ravel(), passed, min(candidates, passed.size))
    boxes, scores = boxes.reshape(-1, 4)[pair], scores.ravel()[pair]
    classes = pair % k
    index, ok = nms(boxes, scores, classes, ok, threshold=nms_threshold, count=count)
    blank = lambda x: jnp.where(ok if x.ndim == 1 else ok[:, None], x, 0)
    return Detections(
        boxes=blank(boxes[index]),
        scores=blank(scores[index]),
        classes=blank(classes[index]),
        valid=ok,
        roi=blank((pair // k)[index]),
        overflow=jnp.maximum(passed.sum(dtype=jnp.int32) - candidates, 0),
    )


def to_original(boxes: Array, hw: Array, original: Array) -> Array:
    """Boxes [..., 4] of an image of hw [2], scaled to its `original` size [2], float32.

    Each axis has its own scale, and boxes are clipped to the image. Empty boxes remain;
    boxes.nonempty tells them apart.
    """
    hw, original = (jnp.asarray(x, jnp.float32) for x in (hw, original))
    scale = (original / hw)[jnp.array([1, 0, 1, 0])]
    return box_ops.clip(boxes.astype(jnp.float32) * scale, original)
