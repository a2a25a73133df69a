"""Barlow Twins: redundancy reduction between two views (Zbontar et al., ICML 2021).

    z    = (projection - mean over the batch) / deviation over the batch
    C_jk = mean over the batch of z^a_j z^b_k                             equation 2
    L    = sum_j (1 - C_jj)^2 + redundancy sum_{j != k} C_jk^2            equation 1

As in the official code, z is standardised by a batch norm without scale and shift: the
variance divides by the number of examples and has 1e-5 added. C belongs to the whole
batch, so L is the same for every example of it. Both sides receive the gradient.

Departure: the official code multiplies L by 0.024, which only rescales the gradient;
the learning rate of the recipe takes its place.
"""

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.state import Objective

Array = jax.Array
EPSILON = 1e-5  # of torch's batch norm


def make(*, redundancy: float) -> Objective:
    """redundancy: the weight of the off-diagonal terms, 0.0051 in the paper."""
    if redundancy < 0:
        raise UsageError(
            f"method.objective.redundancy={redundancy} must be at least 0; "
            f"the paper takes 0.0051."
        )

    def compare(a, b, memory):
        loss = barlow_loss(a, b, redundancy)
        return jnp.broadcast_to(loss, a.shape[:1])  # [B]

    return Objective(
        init=lambda rng, outputs: {},
        predict=lambda outputs, memory, rng, view=None: standardised(outputs),
        target=lambda outputs, memory, rng, view=None: standardised(outputs),
        compare=compare,
        remember=lambda memory, targets: memory,
    )


def standardised(outputs: dict) -> Array:
    """Projections [B, D] with mean 0 and deviation 1 in every dimension, float32."""
    z = outputs["projection"].astype(jnp.float32)
    return (z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + EPSILON)


def barlow_loss(a: Array, b: Array, redundancy: float) -> Array:
    """Equation 1 of standardised embeddings [B, D]; a scalar."""
    # Products in full precision: the target of C_jk is 0, so rounding would be loss.
    c = jnp.einsum("nj,nk->jk", a, b, precision="highest") / len(a)  # [D, D]
    diagonal = jnp.eye(len(c))
    on = jnp.square(1 - c) * diagonal
    off = jnp.square(c) * (1 - diagonal)
    return on.sum() + redundancy * off.sum()
