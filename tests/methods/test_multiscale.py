"""Several resolutions: one step's queue is that of its resolution, and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, models
from mixjax.config import recipes
from mixjax.errors import UsageError
from mixjax.optim import optimizers
from mixjax.state import Clock
from mixjax.training import initial_state, train_step
from tests.support import tiny

CLOCK = Clock(100, 100)


def config_of(resolutions=(12, 16)):
    config = tiny.siamese("moco", "unmix")
    inner = config.method.copy_and_resolve_references()
    config.method = {"name": "multiscale", "resolutions": resolutions, "method": inner}
    return config


def test_each_resolution_has_its_queue():
    config = config_of()
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    keys = jax.random.split(jax.random.key(0), 2)
    views = tuple(jax.random.normal(k, (16, 16, 16, 1)) for k in keys)
    batch = {"views": views, "index": jnp.arange(16)}
    params = jax.eval_shape(method.init, jax.random.key(0), batch).params
    optimizer = optimizers.make(config.optim, lambda step: 0.01, params, clock=CLOCK)
    state = jax.jit(initial_state.make_init(method, optimizer, batch))(
        jax.random.key(0)
    )
    first = [state.memory[name]["queue"] for name in ("12", "16")]
    assert np.abs(first[0] - first[1]).max() > 0.1
    same = lambda batch, resident, rng: batch
    config.accumulate = 1
    step = train_step.make_step(method, optimizer, lambda s: 0.01, same, config)
    traced = []

    @jax.jit
    def counted(state, batch):
        traced.append(1)
        return step(state, batch, {})

    seen = []
    for _ in range(8):
        before, (state, metrics) = state, counted(state, batch)
        size = str(int(metrics["resolution"]))
        other = "12" if size == "16" else "16"
        seen.append(size)
        for part in ("queue", "pointer"):
            old, new = before.memory[other][part], state.memory[other][part]
            np.testing.assert_array_equal(old, new)
        moved = state.memory[size]["queue"] != before.memory[size]["queue"]
        assert moved.any(axis=1).sum() == 16
        assert np.isfinite(metrics["loss"])
    assert len(traced) == 1 and set(seen) == {"12", "16"}


@pytest.mark.parametrize(
    "resolutions, message", [((), "positive"), ((8, 8), "one twice"), ((0, 8), "posit")]
)
def test_what_is_refused(resolutions, message):
    config = config_of(resolutions)
    with pytest.raises(UsageError, match=message):
        methods.make(config.method, models.make(config.model), clock=CLOCK)


def test_a_network_of_one_size_is_refused():
    config = config_of()
    network = models.make(tiny.config().model)
    with pytest.raises(UsageError, match="images of one size"):
        methods.make(config.method, network, clock=CLOCK)


def test_the_recipe():
    """In all else the MoCo v2 recipe with Un-Mix."""
    load = lambda name: recipes.load(f"{tiny.ROOT}/configs/{name}.py:mixture=unmix")
    one, many = load("in1k_mocov2"), load("in1k_mocov2_multiscale")
    assert many.method.resolutions == (160, 192, 224)
    assert many.method.method == one.method
    many.method = one.method
    assert many == one
    assert (
        "mixmask"
        in recipes.load(
            f"{tiny.ROOT}/configs/in1k_mocov2_multiscale.py:mixture=mixmask"
        ).method.method.mixtures
    )
