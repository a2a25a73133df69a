"""From scores and boxes of regions to the objects found in one image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.dense import ranking
from mixjax.dense.nms import nms

Array = jax.Array


class Detections(NamedTuple):
    """Objects found, best first; places with nothing hold zeros and are not valid."""

    boxes: Array  # [count, 4] float32, inside the image; may be empty
    scores: Array  # (count,) float32
    classes: Array  # (count,) int32
    valid: Array  # (count,) bool
    roi: Array  # (count,) int32, the region that each came from
    overflow: Array  # () int32, pairs above the score threshold without a place


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
    """The `count` best pairs of region and class after suppression within classes.

    boxes: [R, 4 K] by class or [R, 4] for all, decoded; probs: [R, K + 1], background
    last; hw: [2], the true size of the image, to which boxes are cut; valid: (R,) bool.
    Only scores above the threshold (not at it) count, the `candidates` best of them.
    """
    k = probs.shape[1] - 1
    boxes = box_ops.clip(boxes.reshape(len(boxes), -1, 4), hw)  # [R, K or 1, 4]
    boxes = jnp.broadcast_to(boxes, (len(boxes), k, 4))
    scores = probs[:, :k].astype(jnp.float32)
    passed = (scores > score_threshold) & jnp.isfinite(boxes).all(axis=-1)
    passed = (passed & valid[:, None]).ravel()  # [R K]
    pair, ok = ranking.top(scores.ravel(), passed, min(candidates, passed.size))
    boxes, scores, group = boxes.reshape(-1, 4)[pair], scores.ravel()[pair], pair % k
    limits = {"threshold": nms_threshold, "count": count}
    index, ok = nms(boxes, scores, group, ok, **limits)
    blank = lambda x: jnp.where(ok if x.ndim == 1 else ok[:, None], x, 0)
    found = map(blank, (boxes[index], scores[index], group[index]))
    roi = blank((pair // k)[index])
    overflow = jnp.maximum(passed.sum(dtype=jnp.int32) - candidates, 0)
    return Detections(*found, ok, roi, overflow)


def to_original(boxes: Array, hw: Array, original: Array) -> Array:
    """Boxes [..., 4] of an image resized to hw [2] in its original size [2], float32.

    Each axis has its own scale; boxes are cut to the image. Empty ones stay: see
    boxes.nonempty.
    """
    hw, original = (jnp.asarray(x, jnp.float32) for x in (hw, original))
    scale = (original / hw)[jnp.array([1, 0, 1, 0])]
    return box_ops.clip(boxes.astype(jnp.float32) * scale, original)
