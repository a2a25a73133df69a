"""Multi-head self-attention with the batch and head axes in front."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.models.linear import dense

Array = jax.Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = None,
    choose: Callable | None = None,
) -> tuple[Array, dict]:
    """softmax(Q K^T / sqrt(d) + bias) V; logits, exponential and sums in float32.

    query, key, value: [B, heads, L, d]. bias: broadcast to [B, heads, L, L]. choose:
    logits -> (bool of that shape, which keys a query sees; or None for all, notes);
    every query must see a key. Returns [B, heads, L, d] in value's dtype, and notes.
    The batch and head axes lead because a batched [L, d] x [d, L] product is the
    fastest form on the CPU and a plain one on accelerators. The division by the sum
    comes after the product with V, where it touches d instead of L numbers per query.
    """
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    if bias is not None:
        logits = logits + bias
    kept, notes = (None, {}) if choose is None else choose(logits)
    if kept is not None:
        logits = jnp.where(kept, logits, -jnp.inf)
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)  # [B, heads, L, L]
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bhqk,bhkd->bhqd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (mixed / total).astype(value.dtype), notes


def by_head(x: Array, heads: int) -> Array:
    """[B, L, D] -> [B, heads, L, d]."""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(0, 2, 1, 3)


def joined(x: Array) -> Array:
    """[B, heads, L, d] -> [B, L, D], the inverse of by_head."""
    b, heads, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, heads * d)


class SelfAttention(nn.Module):
    """[B, L, D] -> [B, L, D]; one fused projection to query, key and value."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, **options) -> tuple[Array, dict]:
        """how: see attend. Returns the result and what `choose` noted."""
        width = x.shape[-1]
        qkv = dense(3 * width, self.dtype, "qkv")(x)  # [B, L, 3 D]
        parts = [by_head(y, self.heads) for y in jnp.split(qkv, 3, axis=-1)]
        mixed, notes = attend(*parts, **options)
        return dense(width, self.dtype, "proj")(joined(mixed)), notes
