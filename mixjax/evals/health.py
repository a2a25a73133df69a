"""Signs of collapsed features: their spread and the directions that they use.

Measured on the features that evaluators read, in evaluation mode, scaled to length 1:
feature_std and mean_cosine as in objectives/health.py, and effective_rank (Roy &
Vetterli, EUSIPCO 2007, definition 1), the number of directions in use.
"""

import logging
from collections.abc import Callable

import jax
import numpy as np

from mixjax.errors import UsageError
from mixjax.evals.features import embedder, extract
from mixjax.objectives.health import health
from mixjax.sharding import meshes

log = logging.getLogger("mixjax")

# Singular values below this share of the features' norm are rounding errors of float32.
ROUNDING = 1e-6
# With fewer than two directions, features differ along a single line.
LEAST_RANK = 2.0
# As a share of 1 / sqrt(d), the standard deviation of evenly spread unit vectors.
# Vectors within about 3 degrees of their mean have this little; features after a ReLU,
# although all in one orthant, have far more.
LEAST_SPREAD = 0.05


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the singular values of features [N, D] about their mean.

    1 if they lie on a line, D if they spread evenly, 0 if all are equal.
    """
    x = features.astype(np.float64)
    whole = np.linalg.norm(x)
    x = x - x.mean(axis=0)
    # Both Gram matrices have the same nonzero eigenvalues: take the smaller one.
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
    values = values[values > ROUNDING * whole]
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def signs(features: np.ndarray, mesh) -> dict[str, float]:
    """feature_std, mean_cosine and effective_rank of features [N, D]."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    everywhere = meshes.replicated(mesh)
    measure = jax.jit(health, out_shardings=everywhere)
    values = jax.device_get(measure(meshes.put(unit, everywhere)))
    metrics = {name: float(value) for name, value in values.items()}
    return metrics | {"effective_rank": effective_rank(unit)}


def describe_collapse(metrics: dict[str, float], width: int) -> str:
    """A sentence that describes how features of `width` dimensions have collapsed.

    metrics: from signs. "" if they have not.
    """
    rank, spread = metrics["effective_rank"], metrics["feature_std"] * width**0.5
    symptoms = []
    if rank < LEAST_RANK:
        symptoms.append(
            f"their effective rank is {rank:.2f} of {width} dimensions, below "
            f"{LEAST_RANK:g}"
        )
    if spread < LEAST_SPREAD:
        symptoms.append(
            f"their standard deviation is {spread:.1%} of 1/sqrt({width}), below "
            f"{LEAST_SPREAD:.0%}"
        )
    if not symptoms:
        return ""
    return f"the features have collapsed: {' and '.join(symptoms)}."


def make(*, examples: int, sets, method, mesh, check: Callable) -> Callable:
    """The evaluator; it logs a warning when features have collapsed.

    examples: number of held-out (or training) examples, spread evenly; 0 for all.
    """
    if examples < 0 or examples in (1, 2):
        raise UsageError(
            f"evals.health.examples={examples} must be 0 for all, or at least 3."
        )
    data = sets.test(examples) or sets.bank(examples)
    embed = embedder(method.features, data, mesh)

    def run(state, step, writer):
        features, _ = extract(embed, data, state, check)
        metrics = signs(features, mesh)
        if warning := describe_collapse(metrics, features.shape[1]):
            log.warning("step %d: %s", step, warning)
        metrics |= {"examples": len(features)}
        return {f"health/{name}": value for name, value in metrics.items()}

    return run
