"""Have features collapsed? What their spread and their directions say.

Of the features that evaluators read, in evaluation mode, each of length 1:
feature_std and mean_cosine as in objectives/health.py, and effective_rank (Roy &
Vetterli, EUSIPCO 2007, definition 1), the number of directions that they use.
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

ROUNDING = 1e-6  # singular values below this share of all features are noise of float32
# Fewer than two directions tell nothing apart but along one line.
LEAST_RANK = 2.0
# Of 1 / sqrt(d), where unit vectors spread evenly. So little have vectors within some
# 3 degrees of their mean; features after ReLU, in one orthant all, have far more.
LEAST_SPREAD = 0.05


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the singular values of features [N, D] about their mean.

    1 where they lie on a line, D where they spread evenly, 0 where all are the same.
    """
    x = features.astype(np.float64)
    whole = np.linalg.norm(x)
    x = x - x.mean(axis=0)
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
    found = jax.device_get(measure(meshes.put(unit, everywhere)))
    found = {name: float(value) for name, value in found.items()}
    return found | {"effective_rank": effective_rank(unit)}


def collapse(found: dict[str, float], width: int) -> str:
    """A sentence about features of that many dimensions that collapsed, else ""."""
    rank, spread = found["effective_rank"], found["feature_std"] * width**0.5
    what = []
    if rank < LEAST_RANK:
        what.append(
            f"their effective rank is {rank:.2f} of {width} dimensions, below "
            f"{LEAST_RANK:g}"
        )
    if spread < LEAST_SPREAD:
        what.append(
            f"their standard deviation is {spread:.1%} of 1/sqrt({width}), below "
            f"{LEAST_SPREAD:.0%}"
        )
    return f"the features have collapsed: {' and '.join(what)}." if what else ""


def make(*, examples: int, sets, method, mesh, check: Callable) -> Callable:
    """The evaluator, with a warning in the log when features have collapsed.

    examples: how many held-out (or training) ones, spread evenly; 0 for all.
    """
    if examples < 0 or examples in (1, 2):
        raise UsageError(
            f"evals.health.examples={examples} must be 0 for all, or at least 3."
        )
    data = sets.test(examples) or sets.bank(examples)
    embed = embedder(method.features, data, mesh)

    def run(state, step, writer):
        features, _ = extract(embed, data, state, check)
        found = signs(features, mesh)
        if said := collapse(found, features.shape[1]):
            log.warning("step %d: %s", step, said)
        found = {f"health/{name}": value for name, value in found.items()}
        return found | {"health/examples": len(features)}

    return run
