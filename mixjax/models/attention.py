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
    """Computes softmax(Q K^T / sqrt(d) + bias) V, with the softmax in float32.

    query, key, value: [B, heads, L, d].
    bias: added to the logits, broadcast to [B, heads, L, L].
    choose: logits -> (visible, notes). visible is a bool mask of the logits' shape
        that selects the keys of each query, at least one per query, or None for all
        keys; notes is a dict of whatever the caller wants back.

    Returns the attended values [B, heads, L, d] in value's dtype, and the notes.
    """
    query = query * query.shape[-1] ** -0.5
    # A batched [L, d] x [d, L] product, which the leading batch and head axes allow,
    # is the fastest form on the CPU and an ordinary one on accelerators.
    logits = jnp.einsum(
        "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
    )  # [B, heads, L, L]
    if bias is not None:
        logits = logits + bias
    visible, notes = (None, {}) if choose is None else choose(logits)
    if visible is not None:
        logits = jnp.where(visible, logits, -jnp.inf)
    # The maximum only keeps exp from overflowing. It cancels in the division below, so
    # its gradient is zero and need not be computed.
    highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    total = weights.sum(axis=-1, keepdims=True)  # [B, heads, L, 1]
    attended = jnp.einsum(
        "bhqk,bhkd->bhqd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    # Dividing after the product with V touches d instead of L numbers per query.
    return (attended / total).astype(value.dtype), notes


def by_head(x: Array, heads: int) -> Array:
    """Splits the channels among the heads: [B, L, D] -> [B, heads, L, d]."""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(0, 2, 1, 3)


def joined(x: Array) -> Array:
    """Concatenates the heads, the inverse of by_head: [B, heads, L, d] -> [B, L, D]."""
    b, heads, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, heads * d)


class SelfAttention(nn.Module):
    """[B, L, D] -> [B, L, D]; one fused projection to query, key and value."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, **options) -> tuple[Array, dict]:
        """Passes `options` to attend; returns the new tokens and attend's notes."""
        width = x.shape[-1]
        qkv = dense(3 * width, self.dtype, "qkv")(x)  # [B, L, 3 D]
        heads = [by_head(y, self.heads) for y in jnp.split(qkv, 3, axis=-1)]
        attended, notes = attend(*heads, **options)  # [B, heads, L, d]
        return dense(width, self.dtype, "proj")(joined(attended)), notes
