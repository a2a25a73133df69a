"""Losses of classifiers: soft cross-entropy, and one decision per class.

Sources: label smoothing and soft targets as timm and MAE's fine-tuning have them; a
binary cross-entropy for every class where a picture has several labels (PASCAL VOC).
"""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def soft_cross_entropy(logits: Array, target: Array) -> Array:
    """-sum target log softmax(logits): [B, K], [B, K] -> [B], float32."""
    return -(target * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1)


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over a picture's classes of a yes-or-no cross-entropy: -> [B], float32.

    labels: [B, K], 1 present, 0 absent, -1 not counted.
    """
    counted = labels >= 0
    each = optax.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), jnp.maximum(labels, 0).astype(jnp.float32)
    )
    total = jnp.where(counted, each, 0.0).sum(axis=-1)
    return total / jnp.maximum(counted.sum(axis=-1), 1)


def hits(logits: Array, labels: Array) -> Array:
    """[B] float32: 1 where the highest of logits [B, K] is the label's."""
    return (logits.argmax(axis=-1) == labels).astype(jnp.float32)
