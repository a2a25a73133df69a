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
