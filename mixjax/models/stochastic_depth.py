"""Stochastic depth (Huang et al., 2016): residual branches that some examples skip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def dropper(key: Array | None, rate: float, depth: int) -> Callable:
    """(layer, branch, y [B, ...]) -> y, zero for the examples that skip it.

    rate: of the last of `depth` layers; it rises linearly from 0 in the first. layer:
    a number or, under scan, an array. branch: 0 or 1, of the layer's two. What is left
    of y is divided by its share, so that the mean stays. key: None drops nothing.
    """

    def drop(layer, branch: int, y: Array) -> Array:
        if key is None:
            return y
        share = 1 - rate * layer / max(depth - 1, 1)
        branch_key = jax.random.fold_in(key, 2 * layer + branch)
        kept = jax.random.bernoulli(branch_key, share, (len(y),) + (1,) * (y.ndim - 1))
        return jnp.where(kept, y / share, 0.0)

    return drop
