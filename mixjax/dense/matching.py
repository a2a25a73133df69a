"""Assigns boxes to ground truth, and samples those that have a loss."""

import jax
import jax.numpy as jnp

from mixjax.dense import ranking
from mixjax.errors import UsageError

Array = jax.Array

IGNORED, NEGATIVE, POSITIVE = -1, 0, 1


def match(
    iou: Array,
    *,
    thresholds: tuple[float, float],
    low_quality: bool | float,
    valid_gt: Array,
    inside: Array | bool,
) -> tuple[Array, Array]:
    """iou [G, N] -> (index (N,) of the best ground truth, label (N,) in -1/0/1), int32.

    Positive from the upper threshold on, negative below the lower one, otherwise
    ignored. low_quality: whether the best boxes of each ground truth (ties included,
    but never without overlap) are positive, too: True, or a number for those whose IoU
    reaches it. Their index remains that of the ground truth that they themselves
    overlap most, as in detectron2. valid_gt: [G] bool; inside: [N] bool or True;
    boxes that are not inside are ignored. UsageError for thresholds that do not rise.
    """
    low, high = thresholds
    if not 0 <= low <= high <= 1:
        raise UsageError(
            f"thresholds={tuple(thresholds)} must rise within 0..1; an RPN takes "
            "(0.3, 0.7), a box head (0.5, 0.5)."
        )
    inside = jnp.broadcast_to(inside, iou.shape[1])
    # Padding must lie below every overlap: its rows have only zeros, all "the best".
    iou = jnp.where(valid_gt[:, None] & inside, jax.lax.stop_gradient(iou), -1)
    # One value for all uses: computed twice, it could round to an unequal maximum.
    iou = jax.lax.optimization_barrier(iou)
    best = iou.max(axis=0)
    label = jnp.where(best >= high, POSITIVE, IGNORED)
    label = jnp.where(best < low, NEGATIVE, label)
    if low_quality is not False:
        least = 0.0 if low_quality is True else low_quality
        label = jnp.where(_forced(iou, least), POSITIVE, label)
    label = jnp.where(inside, label, IGNORED)
    return iou.argmax(axis=0).astype(jnp.int32), label.astype(jnp.int32)


def _forced(iou: Array, least: float) -> Array:
    """(N,) bool: whether a box is the best of any row of iou [G, N], and at `least`."""
    best = iou.max(axis=1, keepdims=True)  # [G, 1]
    return ((iou == best) & (best > 0) & (best >= least)).any(axis=0)


def sample(
    key: Array, label: Array, *, count: int, fraction: float
) -> tuple[Array, Array, Array]:
    """Samples `count` boxes: (index, valid, positive), all (count,), positives first.

    label: (N,) in -1/0/1. At most count * fraction positives and otherwise negatives,
    drawn uniformly without replacement; ignored boxes are never drawn. Each image needs
    a key of its own.
    """
    # The highest of independent uniform numbers: a sample without replacement.
    chance = jax.random.uniform(key, label.shape)
    positive = jnp.asarray(label) == POSITIVE
    chosen, real = ranking.top(chance, positive, int(count * fraction))
    chosen = jnp.zeros(label.shape, bool).at[chosen].max(real)
    # One more ranking puts the chosen positives before all negatives.
    order = jnp.where(chosen, 2 + chance, chance)
    index, valid = ranking.top(order, chosen | (label == NEGATIVE), count)
    return index, valid, valid & positive[index]


def sample_weights(key: Array, label: Array, *, count: int, fraction: float) -> Array:
    """Like sample, but as weights of all boxes: (N,) float32, 1 for those drawn."""
    index, valid, _ = sample(key, label, count=count, fraction=fraction)
    weights = jnp.zeros(label.shape, jnp.float32)
    # max, not set: padding may repeat a drawn index and must not overwrite it.
    return weights.at[index].max(valid.astype(jnp.float32))
