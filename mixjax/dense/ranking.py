"""The best of a list in a fixed number of places."""

import jax
import jax.numpy as jnp

Array = jax.Array


def best(scores: Array, count: int) -> Array:
    """Indices (count,) int32 of the highest of scores (N,), of equal ones the first.

    By a sort: of a batch that is cut over devices it sends nothing, where lax.top_k
    would gather the scores of all.
    """
    return jnp.argsort(-scores, stable=True)[:count].astype(jnp.int32)


def top(scores: Array, valid: Array, count: int) -> tuple[Array, Array]:
    """The `count` best valid entries: index (count,) int32 and valid (count,) bool.

    scores: (N,) above -inf; valid: (N,) bool. Sorted by score, of equal ones the lower
    index first. Places with nothing in them come last, invalid, with an index in range.
    """
    n, valid = len(scores), jnp.asarray(valid)
    index = best(jnp.where(valid, scores, -jnp.inf), min(count, n))
    index = jnp.pad(index, (0, max(count - n, 0)))
    return index, valid[index] & (jnp.arange(count) < n)
