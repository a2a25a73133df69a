"""Selects the proposals of a region proposal network from its outputs."""

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
    """The proposals of one image: (boxes [after, 4], logits, valid (after,)), sorted.

    For each level: logits (n,), deltas [n, 4], anchors [n, 4]; hw: [2], the size of the
    image without padding. In each level the `before` best are decoded, clipped to the
    image, and, without empty ones, go through NMS at IoU above `threshold`; then the
    `after` best of all levels remain (detectron2's order). Padding is 0. No gradient.
    """
    logits, deltas = jax.lax.stop_gradient((tuple(logits), tuple(deltas)))
    by_level = [
        _level(*level, hw, before, after, threshold)
        for level in zip(logits, deltas, anchors, strict=True)
    ]
    boxes, scores, valid = (jnp.concatenate(x) for x in zip(*by_level, strict=True))
    # NMS never crosses levels; only their best are compared.
    index, valid = ranking.top(scores, valid, after)
    boxes = jnp.where(valid[:, None], boxes[index], 0)
    return boxes, jnp.where(valid, scores[index], 0), valid


def _level(logits, deltas, anchors, hw, before, after, threshold):
    """The proposals of one level: boxes [k, 4], scores (k,), valid (k,).

    k = min(after, n, before): more cannot be among the best of all levels.
    """
    logits = logits.astype(jnp.float32)
    at = ranking.best(logits, min(before, len(logits)))
    scores = logits[at]
    boxes = box_ops.decode(deltas[at], jnp.asarray(anchors)[at], (1, 1, 1, 1))
    # Non-finite outputs, of a diverging network, must not become proposals.
    valid = jnp.isfinite(scores) & jnp.isfinite(boxes).all(axis=1)
    boxes = box_ops.clip(boxes, hw)
    valid &= box_ops.nonempty(boxes)
    group = jnp.zeros(len(scores), jnp.int32)  # all the same: there are no classes yet
    count = min(after, len(scores))
    at, valid = nms(boxes, scores, group, valid, threshold=threshold, count=count)
    return boxes[at], scores[at], valid
