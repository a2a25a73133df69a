"""VICReg: a new objective is a file, a config and a test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import objectives
from mixjax.errors import UsageError
from mixjax.state import Clock

WEIGHTS = dict(name="vicreg", invariance=25.0, variance=25.0, covariance=1.0)


def by_definition(a, b, weights):
    """Equations 1 to 6 in NumPy, with loops."""
    n, d = a.shape
    total = weights[0] * ((a - b) ** 2).sum() / n / d
    for z in (a, b):
        cov = sum(np.outer(row, row) for row in z - z.mean(axis=0)) / (n - 1)
        short = [max(0.0, 1 - np.sqrt(cov[j, j] + 1e-4)) for j in range(d)]
        total += weights[1] * np.mean(short) / 2
        off = [cov[j, k] ** 2 for j in range(d) for k in range(d) if j != k]
        total += weights[2] * sum(off) / d
    return total


@pytest.mark.parametrize("weights", [(25, 25, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_the_definition(weights):
    names = ("invariance", "variance", "covariance")
    fields = {"name": "vicreg"} | dict(zip(names, map(float, weights), strict=True))
    objective = objectives.make(fields, clock=Clock(10, 10))
    numbers = np.random.default_rng(0).normal(size=(2, 12, 5)) * 0.8 + 1
    numbers[1] += 0.3 * numbers[0]

    @jax.jit
    def loss(a, b):
        a = objective.predict({"projection": a}, {}, None)
        b = objective.target({"projection": b}, {}, None, 1)
        return objective.compare(a, b, {})

    found = loss(*jnp.asarray(numbers, jnp.float32))
    assert found.shape == (12,)
    np.testing.assert_allclose(
        found.mean(), by_definition(*numbers, weights), rtol=1e-5
    )
    both = jax.grad(lambda a, b: loss(a, b).mean(), argnums=(0, 1))(*numbers)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in both)


def test_a_collapsed_batch_costs_and_has_a_gradient():
    objective = objectives.make(WEIGHTS, clock=Clock(10, 10))
    one = jnp.ones((6, 3))
    loss = lambda x: objective.compare(x, x, {}).mean()
    np.testing.assert_allclose(loss(one), 25 * 0.99, rtol=1e-4)
    assert np.isfinite(jax.grad(loss)(one)).all()


def test_weights_are_checked():
    with pytest.raises(UsageError, match="at least 0"):
        objectives.make(WEIGHTS | {"variance": -1.0}, clock=Clock(10, 10))
