"""Multi-head self-attention with the batch and head axes in front."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.models.dense import dense

Array = jax.Array


def attend(query: Array, key: Array, value: Array) -> Array:
    """softmax(Q K^T / sqrt(d)) V; logits, exponential and sums in float32.

    query, key, value: [B, heads, L, d]. Returns [B, heads, L, d] in value's dtype.
    The batch and head axes lead because a batched [L, d] x [d, L] product is the
    fastest form on the CPU and a plain one on accelerators. The division by the sum
    comes after the product with V, where it touches d instead of L numbers per query.
    """
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)  # [B, heads, L, L]
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bhqk,bhkd->bhqd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (mixed / total).astype(value.dtype)


class SelfAttention(nn.Module):
    """[B, L, D] -> [B, L, D]; one fused projection to query, key and value."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, n, d = x.shape

        def by_head(y):
            y = y.reshape(b, n, self.heads, d // self.heads)
            return y.transpose(0, 2, 1, 3)  # [B, heads, L, d]

        qkv = dense(3 * d, self.dtype, "qkv")(x)  # [B, L, 3 D]
        x = attend(*(by_head(y) for y in jnp.split(qkv, 3, axis=-1)))
        x = x.transpose(0, 2, 1, 3).reshape(b, n, d)  # [B, L, D]
        return dense(d, self.dtype, "proj")(x)
