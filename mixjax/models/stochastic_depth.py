"""Stochastic depth (Huang et al., 2016): residual branches that some examples skip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def dropper(key: Array | None, rate: float, depth: int) -> Callable:
    """(layer, branch, y [B, ...]) -> y, zero for the examples that skip it.

    rate: the drop rate of the last of `depth` layers; it rises linearly from 0 in the
    first. layer: an int or, under scan, an array. branch: 0 or 1, which of the layer's
    two. The kept examples are divided by the probability of keeping one, so that the
    mean does not change. key: None drops nothing.
    """

    def drop(layer, branch: int, y: Array) -> Array:
        if key is None:
            return y
        share = 1 - rate * layer / max(depth - 1, 1)
        # A number of its own for every branch, so that no two drop the same examples.
        branch_key = jax.random.fold_in(key, 2 * layer + branch)
        kept = jax.random.bernoulli(branch_key, share, (len(y),) + (1,) * (y.ndim - 1))
        return jnp.where(kept, y / share, 0.0)

    return drop
