"""Losses of detectors, over the whole batch at once; all sums are float32.

Their normalisers are detectron2's: places of the RPN's sample (also empty ones), all
sampled regions (not only positives), and all pixels of all positives. Leading axes
[...] are those of the batch, as [B, R].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.errors import check_name

Array = jax.Array


def binary(logits: Array, targets: Array) -> Array:
    """Cross-entropy of sigmoids with targets in 0..1, elementwise, float32."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - logits * targets


def smooth_l1(error: Array, beta: float) -> Array:
    """|error|, or a parabola below `beta`; elementwise. beta 0 is plain L1."""
    size = abs(error)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def rpn_losses(
    logits: Array,
    deltas: Array,
    labels: Array,
    targets: Array,
    *,
    normaliser: int,
    beta: float,
) -> tuple[Array, Array]:
    """(objectness, box) losses of a region proposal network.

    logits: [..., N]; deltas, targets: [..., N, 4], targets encoded; labels: [..., N], 1
    and 0 for sampled positives and negatives, -1 else. Both sums are divided by
    `normaliser`: the places of a sample times the images, however many were filled.
    """
    entropy = binary(logits, labels == 1)
    objectness = jnp.where(labels >= 0, entropy, 0).sum() / normaliser
    # Before the distance, so that rows of no object have no gradient, not even NaN.
    error = deltas.astype(jnp.float32) - targets
    error = jnp.where((labels == 1)[..., None], error, 0)
    return objectness, smooth_l1(error, beta).sum() / normaliser


def box_losses(
    logits: Array,
    deltas: Array,
    *,
    classes: Array,
    valid: Array,
    positive: Array,
    proposals: Array,
    targets: Array,
    weights: Sequence[float],
    kind: str,
    beta: float,
) -> tuple[Array, Array]:
    """(class, box) losses of a box head over the sampled regions of the batch.

    logits: [..., K + 1], background last; deltas: [..., 4 K] by class or [..., 4];
    classes: [...], any where not positive; valid, positive: [...] bool; proposals and
    their ground truth targets: [..., 4]. kind: "l1" on deltas coded with `weights`
    (smooth below `beta`) or "giou" on decoded boxes. Positives alone have a box loss,
    but both sums are divided by all valid regions. UsageError for another kind.
    """
    check_name("box loss", kind, ("l1", "giou"))
    k = logits.shape[-1] - 1
    positive = positive & valid
    labels = jnp.where(positive, classes, k)[..., None]
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    entropy = -jnp.take_along_axis(logs, labels, axis=-1)[..., 0]
    deltas = _own(deltas, jnp.where(positive, classes, 0))
    if kind == "giou":
        boxes = box_ops.decode(deltas, proposals, weights)
        distance = 1 - box_ops.giou(boxes, targets)
    else:
        error = deltas - box_ops.encode(targets, proposals, weights)
        error = jnp.where(positive[..., None], error, 0)
        distance = smooth_l1(error, beta).sum(axis=-1)
    regions = jnp.maximum(valid.sum(), 1)
    sums = jnp.where(valid, entropy, 0).sum(), jnp.where(positive, distance, 0).sum()
    return sums[0] / regions, sums[1] / regions


def _own(deltas: Array, classes: Array) -> Array:
    """Each region's deltas [..., 4] for its class, if there are several; float32."""
    deltas = deltas.astype(jnp.float32)
    deltas = deltas.reshape(*deltas.shape[:-1], -1, 4)  # [..., K or 1, 4]
    if deltas.shape[-2] == 1:
        return deltas[..., 0, :]
    own = jnp.take_along_axis(deltas, classes[..., None, None], axis=-2)
    return own[..., 0, :]  # [..., 4]


def mask_loss(logits: Array, targets: Array, classes: Array, positive: Array) -> Array:
    """Mean binary cross-entropy over all pixels of all positives; 0 if there are none.

    logits: [..., m, m, K], of which only the channel of classes [...] counts; targets:
    [..., m, m] in 0/1; positive: [...] bool.
    """
    own = jnp.where(positive, classes, 0)[..., None, None, None]
    own = jnp.take_along_axis(logits, own, axis=-1)[..., 0]  # [..., m, m]
    mean = binary(own, targets).mean(axis=(-2, -1))
    return jnp.where(positive, mean, 0).sum() / jnp.maximum(positive.sum(), 1)
