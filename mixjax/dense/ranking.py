"""Selects the highest scores into arrays of fixed length."""

import jax
import jax.numpy as jnp

Array = jax.Array


def best(scores: Array, count: int) -> Array:
    """Indices (count,) int32 of the highest of scores (N,); of equal ones the first.

    By sorting: under vmap over a batch sharded over devices this moves no data, whereas
    lax.top_k would gather the scores of the whole batch.
    """
    return jnp.argsort(-scores, stable=True)[:count].astype(jnp.int32)


def top(scores: Array, valid: Array, count: int) -> tuple[Array, Array]:
    """The `count` best valid entries: (index (count,) int32, valid (count,) bool).

    scores: (N,) above -inf; valid: (N,) bool. Sorted by score; of equal scores the
    lower index comes first. Padding comes last, is not valid, and has an index within
    range.
    """
    n, valid = len(scores), jnp.asarray(valid)
    index = best(jnp.where(valid, scores, -jnp.inf), min(count, n))
    # If count > n: the result has a fixed length.
    index = jnp.pad(index, (0, max(count - n, 0)))
    return index, valid[index] & (jnp.arange(count) < n)
