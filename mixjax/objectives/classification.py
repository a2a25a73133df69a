"""Losses of classifiers: cross-entropy with soft targets, and one decision per class.

Sources: label smoothing and soft targets as in timm and MAE's fine-tuning; a binary
cross-entropy for every class where an image has several labels (PASCAL VOC).
"""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def soft_cross_entropy(logits: Array, target: Array) -> Array:
    """-sum target log softmax(logits): [B, K], [B, K] -> [B], float32."""
    return -(target * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1)


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """The binary cross-entropy of each class, averaged per image: [B], float32.

    logits: [B, K]. labels: [B, K], 1 present, 0 absent, -1 ignored (the "difficult"
    objects of PASCAL VOC).
    """
    counted = labels >= 0  # [B, K]
    each = optax.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), jnp.maximum(labels, 0).astype(jnp.float32)
    )
    total = jnp.where(counted, each, 0.0).sum(axis=-1)  # [B]
    # At least 1: an image without a counted class has loss 0, not 0 / 0.
    return total / jnp.maximum(counted.sum(axis=-1), 1)


def hits(logits: Array, labels: Array) -> Array:
    """[B] float32: 1 where the largest of logits [B, K] is that of the label [B]."""
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
