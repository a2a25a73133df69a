"""Signs of collapse, and of life, in what a network puts out."""

import jax
import jax.numpy as jnp

Array = jax.Array


def health(z: Array) -> dict[str, Array]:
    """Signs of collapse in projections [B, d].

    feature_std: of unit vectors, over the batch, averaged over dimensions; about
    1 / sqrt(d) where they spread evenly, 0 where all are the same (SimSiam, figure 2).
    mean_cosine: of all pairs of different examples.
    """
    z = jax.lax.stop_gradient(z.astype(jnp.float32))
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    n = z.shape[0]
    spread = jnp.sqrt(jnp.sum(jnp.square(z - z.mean(axis=0)), axis=0) / max(n - 1, 1))
    together = (jnp.sum(jnp.square(z.sum(axis=0))) - n) / max(n * (n - 1), 1)
    return {"feature_std": spread.mean(), "mean_cosine": together}


def queue_age(queue: Array, steps: Array, keys: int) -> Array:
    """Steps since the oldest key of a queue [..., K, d] was written, [] float32.

    steps: done so far; keys: written a step, over all leading axes. Rows of zeros have
    not been written yet, and random rows that are there from the start are as old as
    the run.
    """
    written = (queue != 0).any(axis=-1).sum()
    return jnp.minimum(steps, written // keys).astype(jnp.float32)
