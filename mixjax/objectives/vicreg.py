"""VICReg: variance, invariance and covariance (Bardes et al., ICLR 2022).

    s = |a_i - b_i|^2 / d                                     invariance, equation 5
    v = mean_j max(0, 1 - sqrt(Var(a_j) + 1e-4))              variance, equation 1
    c = sum_{j != k} Cov(a)_jk^2 / d                          covariance, equation 4
    L = invariance s + variance (v(a) + v(b)) / 2 + covariance (c(a) + c(b))

Embeddings are not normalised. As in the code of the paper, s is divided by d and v
halved; the paper's text does neither. v and c are statistics of the whole batch and
count equally for each of its examples.
"""

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.state import Objective

Array = jax.Array


def make(*, invariance: float, variance: float, covariance: float) -> Objective:
    """The weights of the three terms; 25, 25 and 1 in the paper."""
    if min(invariance, variance, covariance) < 0:
        raise UsageError("objective: VICReg's weights must be at least 0.")

    def embed(outputs, memory, rng, view=None):
        return outputs["projection"].astype(jnp.float32)

    def compare(a, b, memory):
        apart = jnp.square(a - b).mean(axis=1)  # [B]
        # Scalars from here on; each is added to every example of [B].
        narrow = (hinge(a) + hinge(b)) / 2
        redundant = correlated(a) + correlated(b)
        return invariance * apart + variance * narrow + covariance * redundant

    return Objective(
        init=lambda rng, outputs: {},
        predict=embed,
        target=embed,
        compare=compare,
        remember=lambda memory, targets: memory,
    )


def hinge(x: Array) -> Array:
    """The mean shortfall from 1 of the standard deviations of [B, d]; equation 1."""
    return jax.nn.relu(1 - jnp.sqrt(x.var(axis=0, ddof=1) + 1e-4)).mean()


def correlated(x: Array) -> Array:
    """The sum of the squared off-diagonal covariances of [B, d], over d; equation 4."""
    n, d = x.shape
    x = x - x.mean(axis=0)
    cov = jnp.einsum("nd,ne->de", x, x, precision="highest") / (n - 1)
    # Not jnp.diagonal: its gather makes XLA abort in a training step on a single CPU.
    return jnp.square(cov * (1 - jnp.eye(d))).sum() / d
