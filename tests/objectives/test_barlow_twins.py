"""Barlow Twins: the definition, a collapsed batch, and a weight that is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import objectives
from mixjax.errors import UsageError
from mixjax.state import Clock


def objective(redundancy):
    fields = {"name": "barlow_twins", "redundancy": redundancy}
    return objectives.make(fields, clock=Clock(10, 10))


def loss_of(objective, a, b):
    """The loss of every example [B], as the siamese method computes it."""
    prediction = objective.predict({"projection": a}, {}, None)
    target = objective.target({"projection": b}, {}, None, 1)
    return objective.compare(prediction, target, {})


def by_definition(a, b, redundancy):
    """Equations 1 and 2 in NumPy, with loops."""
    za, zb = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (a, b))
    n, d = a.shape
    total = 0.0
    for j in range(d):
        for k in range(d):
            c = sum(za[i, j] * zb[i, k] for i in range(n)) / n
            total += (1 - c) ** 2 if j == k else redundancy * c**2
    return total


@pytest.mark.parametrize("redundancy", [0.0051, 0.0, 1.0])
def test_the_definition(redundancy):
    views = np.random.default_rng(0).normal(size=(2, 12, 5)) * 0.8 + 1
    views[1] += 0.3 * views[0]
    barlow = objective(redundancy)
    loss = jax.jit(lambda a, b: loss_of(barlow, a, b))
    values = loss(*jnp.asarray(views, jnp.float32))
    assert values.shape == (12,)
    expected = by_definition(*views, redundancy)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    gradients = jax.grad(lambda a, b: loss(a, b).mean(), argnums=(0, 1))(*views)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)


def test_equal_and_uncorrelated_embeddings_cost_nothing():
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    np.testing.assert_allclose(loss_of(objective(1.0), signs, signs), 0, atol=1e-9)


def test_a_collapsed_batch_costs_and_has_a_finite_gradient():
    collapsed = jnp.ones((6, 3))
    loss = lambda x: loss_of(objective(0.0051), x, x).mean()
    np.testing.assert_allclose(loss(collapsed), 3, rtol=1e-4)
    assert np.isfinite(jax.grad(loss)(collapsed)).all()


def test_a_negative_weight_is_refused():
    with pytest.raises(UsageError, match="redundancy=-1.0 must be at least 0"):
        objective(-1.0)
