"""Losses of detectors over a whole batch; all sums are float32.

Normalisers are those of detectron2: the size of the RPN's sample, filled or not, for
its losses; all sampled regions, not only positives, for boxes; all pixels of all
positives for masks. Leading axes [...] are those of the batch, such as [B, R].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.errors import check_name

Array = jax.Array


def binary(logits: Array, targets: Array) -> Array:
    """Binary cross-entropy of logits with targets in 0..1, elementwise, float32."""
    logits = logits.astype(jnp.float32)
    # -t log s(x) - (1 - t) log(1 - s(x)), without overflow
    return jax.nn.softplus(logits) - logits * targets


def smooth_l1(error: Array, beta: float) -> Array:
    """|error| - beta / 2, or a parabola where |error| < beta; elementwise.

    Girshick (2015), equation 3, with the border at beta instead of 1. beta=0 is L1.
    """
    distance = abs(error)
    if beta == 0:
        return distance
    parabola = 0.5 * distance**2 / beta
    return jnp.where(distance < beta, parabola, distance - 0.5 * beta)


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
    and 0 for sampled positives and negatives, -1 for anchors that were not sampled.
    Both sums are divided by `normaliser`: samples per image times images, even if fewer
    anchors were available.
    """
    entropy = binary(logits, labels == 1)
    objectness = jnp.where(labels >= 0, entropy, 0).sum() / normaliser
    # Masked before the distance, so that other rows have no gradient, not even NaN.
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
    classes: [...], arbitrary where not positive; valid, positive: [...] bool;
    proposals, and the ground-truth boxes `targets`: [..., 4]. kind: "l1" on deltas
    encoded with `weights` (smooth below `beta`) or "giou" on decoded boxes. Only
    positives have a box loss, but both sums are divided by the number of valid regions.
    UsageError for any other kind.
    """
    check_name("box loss", kind, ("l1", "giou"))
    k = logits.shape[-1] - 1
    positive = positive & valid
    labels = jnp.where(positive, classes, k)[..., None]  # K: background
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    entropy = -jnp.take_along_axis(logs, labels, axis=-1)[..., 0]
    deltas = _select_class(deltas, jnp.where(positive, classes, 0))
    if kind == "giou":
        boxes = box_ops.decode(deltas, proposals, weights)
        distance = 1 - box_ops.giou(boxes, targets)
    else:
        error = deltas - box_ops.encode(targets, proposals, weights)
        error = jnp.where(positive[..., None], error, 0)
        distance = smooth_l1(error, beta).sum(axis=-1)
    regions = jnp.maximum(valid.sum(), 1)
    class_sum = jnp.where(valid, entropy, 0).sum()
    box_sum = jnp.where(positive, distance, 0).sum()
    return class_sum / regions, box_sum / regions


def _select_class(deltas: Array, classes: Array) -> Array:
    """Each region's deltas [..., 4] for its class, float32.

    deltas: [..., 4 K], or [..., 4] for all classes.
    """
    deltas = deltas.astype(jnp.float32)
    deltas = deltas.reshape(*deltas.shape[:-1], -1, 4)  # [..., K or 1, 4]
    if deltas.shape[-2] == 1:
        return deltas[..., 0, :]
    selected = jnp.take_along_axis(deltas, classes[..., None, None], axis=-2)
    return selected[..., 0, :]  # [..., 4]


def mask_loss(logits: Array, targets: Array, classes: Array, positive: Array) -> Array:
    """Mean binary cross-entropy over all pixels of all positives; 0 if there are none.

    logits: [..., m, m, K], of which only the channel of the region's class counts (He
    et al., 2017, section 3: masks of different classes do not compete); classes: [...];
    targets: [..., m, m] in 0/1; positive: [...] bool.
    """
    channel = jnp.where(positive, classes, 0)[..., None, None, None]
    of_class = jnp.take_along_axis(logits, channel, axis=-1)[..., 0]  # [..., m, m]
    mean = binary(of_class, targets).mean(axis=(-2, -1))
    return jnp.where(positive, mean, 0).sum() / jnp.maximum(positive.sum(), 1)
