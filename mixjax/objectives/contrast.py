"""Embeddings as directions: what the contrastive objectives share."""

import jax
import jax.numpy as jnp

Array = jax.Array
SMALLEST = 1e-12  # the least length to divide by; the value of torch


def unit(x: Array) -> Array:
    """Embeddings [..., d] -> float32 of length 1; 0 stays 0, with a finite gradient."""
    x = x.astype(jnp.float32)
    # The maximum is taken before the root, whose gradient at 0 is infinite.
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, SMALLEST**2))


def products(a: Array, b: Array) -> Array:
    """The inner products of all pairs: a [A, d], b [B, d] -> [A, B].

    In full float32: the products are divided by a small temperature, which would
    magnify the error of a faster product into the logits.
    """
    return jnp.einsum("ad,bd->ab", a, b, precision="highest")


def among(a: Array, b: Array, temperature: float) -> Array:
    """Cross-entropy of a_i's positive b_i among all b_j: two unit [B, d] -> [B]."""
    logits = products(a, b) / temperature  # [B, B]
    return jax.nn.logsumexp(logits, axis=1) - (a * b).sum(axis=1) / temperature
