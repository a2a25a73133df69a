"""Signs of collapse in the outputs of a siamese network, and the age of its queue."""

import jax
import jax.numpy as jnp

Array = jax.Array


def health(z: Array) -> dict[str, Array]:
    """Signs of collapse in projections [B, d].

    feature_std: the standard deviation of the unit vectors over the batch, averaged
    over dimensions: about 1 / sqrt(d) if they spread evenly, 0 if they are all equal
    (SimSiam, figure 2). mean_cosine: the mean over all pairs of different examples.
    """
    z = jax.lax.stop_gradient(z.astype(jnp.float32))
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    n = z.shape[0]
    spread = jnp.sqrt(jnp.sum(jnp.square(z - z.mean(axis=0)), axis=0) / max(n - 1, 1))
    # |sum z|^2 sums the cosines of all n^2 pairs; n of them are 1, of z_i with itself.
    cosine = (jnp.sum(jnp.square(z.sum(axis=0))) - n) / max(n * (n - 1), 1)
    return {"feature_std": spread.mean(), "mean_cosine": cosine}


def queue_age(queue: Array, steps: Array, keys: int) -> Array:
    """The age in steps of the oldest key in a queue [..., K, d], [] float32.

    steps: those done so far; keys: the number written per step, over all leading axes.
    Rows of zeros have not been written yet; the random rows that a queue starts with
    are as old as the run.
    """
    written = (queue != 0).any(axis=-1).sum()
    return jnp.minimum(steps, written // keys).astype(jnp.float32)
