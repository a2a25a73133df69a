"""Embeddings as directions: what the contrastive objectives share."""

import jax
import jax.numpy as jnp

Array = jax.Array
SMALLEST = 1e-12  # a shorter embedding is divided by this


def unit(x: Array) -> Array:
    """Embeddings [..., d] -> float32 of length 1; 0 stays 0, with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, SMALLEST**2))


def products(a: Array, b: Array) -> Array:
    """a [A, d], b [B, d] -> every a.b [A, B].

    In full float32: divided by a small temperature, the error of a shorter product
    would be a visible part of a logit.
    """
    return jnp.einsum("ad,bd->ab", a, b, precision="highest")


def among(a: Array, b: Array, temperature: float) -> Array:
    """Cross-entropy of finding b_i among all b_j by a_i: two [B, d] -> [B]."""
    logits = products(a, b) / temperature
    return jax.nn.logsumexp(logits, axis=1) - (a * b).sum(axis=1) / temperature
