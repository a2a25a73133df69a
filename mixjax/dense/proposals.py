"""From the maps of a region proposal network to the regions that the heads look at."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.dense import ranking
from mixjax.dense.nms import nms

Array = jax.Array


def proposals(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[Array],
    hw: Array,
    *,
    before: int,
    after: int,
    threshold: float,
) -> tuple[Array, Array, Array]:
    """The best regions of one image: boxes [after, 4], logits, valid (after,), sorted.

    For each level: logits (n,), deltas [n, 4], anchors [n, 4]; hw: [2], the true size
    of the image. Per level the `before` best are decoded, cut to the image, freed of
    empty ones and suppressed at IoU above `threshold`; then the `after` best of all
    levels stay (detectron2's order). Places with nothing hold zeros. No gradient.
    """
    logits, deltas = jax.lax.stop_gradient((tuple(logits), tuple(deltas)))
    found = [
        _level(*level, hw, before, after, threshold)
        for level in zip(logits, deltas, anchors, strict=True)
    ]
    boxes, scores, valid = (jnp.concatenate(x) for x in zip(*found, strict=True))
    index, valid = ranking.top(scores, valid, after)
    boxes = jnp.where(valid[:, None], boxes[index], 0)
    return boxes, jnp.where(valid, scores[index], 0), valid


def _level(logits, deltas, anchors, hw, before, after, threshold):
    """One level: boxes [k, 4], scores (k,) and valid (k,), k of them at most."""
    logits = logits.astype(jnp.float32)
    at = ranking.best(logits, min(before, len(logits)))
    scores = logits[at]
    boxes = box_ops.decode(deltas[at], jnp.asarray(anchors)[at], (1, 1, 1, 1))
    valid = jnp.isfinite(scores) & jnp.isfinite(boxes).all(axis=1)
    boxes = box_ops.clip(boxes, hw)
    valid &= box_ops.nonempty(boxes)
    one = jnp.zeros(len(scores), jnp.int32)
    count = min(after, len(scores))
    at, valid = nms(boxes, scores, one, valid, threshold=threshold, count=count)
    return boxes[at], scores[at], valid
