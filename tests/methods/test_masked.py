"""Every masked method: it learns, compiles once, and eight devices agree with one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, models
from mixjax.optim import optimizers
from mixjax.optim.schedules import Clock
from mixjax.sharding import meshes
from mixjax.state import ALL
from mixjax.training import initial_state, train_step
from tests.support import tiny

CLOCK = Clock(100, 100)
VARIANTS = [(name, "") for name in tiny.METHODS] + [
    ("mixedae", "attend=global"),
    ("mixedae", "attend=masked_sa,segment=0,homocon=0"),
    ("mixedae", "mode=full,r=.5"),
    ("mixedae", "mixing=0"),
    ("mixedae", "recon=0,position=decoder,positives=one"),
    ("mixedae", "position=0,positives=prototype,start=1"),
    ("mimae", "views=3,masks=independent,ratio=.5"),
    ("mimae", "lam2=0,lam3=0,approx=0"),
    ("misimmim", "gate=instant"),
    ("misimmim", "lam2=0,lam3=0,approx=0"),
]


@functools.cache
def built(name, variants):
    """(config, method, batch of pictures, state) of a tiny run."""
    config = tiny.masked(name, variants)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    geometry = network.geometry
    shape = (16, *geometry.image_size, geometry.channels)
    images = jax.random.normal(jax.random.key(1), shape)
    batch = {"views": (images,), "index": jnp.arange(16)}
    params = jax.eval_shape(method.init, jax.random.key(0), batch).params
    optimizer = optimizers.make(config.optim, lambda step: 0.0, params, clock=CLOCK)
    state = jax.jit(initial_state.make_init(method, optimizer, batch))(
        jax.random.key(0)
    )
    return config, method, batch, state


def loss_and_gradient(method, state, batch):
    evaluate = jax.value_and_grad(method.loss, has_aux=True)
    (loss, aux), grads = evaluate(state.params, state, batch, jax.random.key(3))
    return loss, aux.metrics, grads


@pytest.mark.parametrize("name, variants", VARIANTS)
def test_it_learns_and_compiles_once(name, variants):
    """A few steps on one batch: finite, falling, one trace."""
    config, method, batch, state = built(name, variants)
    rate = lambda step: jnp.float32(2e-3)
    same = lambda batch, resident, rng: batch
    optimizer = optimizers.make(config.optim, rate, state.params, clock=CLOCK)
    step = train_step.make_step(method, optimizer, rate, same, config)
    traced = []

    @jax.jit
    def counted(state, batch):
        traced.append(1)
        return step(state, batch, {})

    losses = []
    for _ in range(30):
        state, metrics = counted(state, batch)
        # For MI-MAE the reconstruction: in its total, two networks play against each
        # other.
        losses.append(float(metrics.get("loss_rec", metrics["loss"])))
    assert len(traced) == 1
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("name, variants", VARIANTS[:5] + VARIANTS[6:7])
def test_eight_devices_agree_with_one(name, variants):
    _, method, batch, state = built(name, variants)
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), batch)
    batch["index"] = jnp.arange(32)
    run = functools.partial(loss_and_gradient, method)
    alone = jax.jit(run)(state, batch)
    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    shardings = {"in_shardings": (everywhere, cut), "out_shardings": everywhere}
    spread = jax.jit(run, **shardings)(state, jax.device_put(batch, cut))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone[0], spread[0], rtol=1e-5)


def test_features_do_not_depend_on_the_loss_parts():
    """Features need the encoder's parameters alone."""
    for name in tiny.METHODS:
        _, method, batch, state = built(name, "")
        blank = {k: v for k, v in state.params.items() if k == "encoder"}
        features = method.features(state.replace(params=blank), batch["views"][0])
        assert features.shape == (16, 16) and features.dtype == jnp.float32


@pytest.mark.parametrize("name, variants", VARIANTS[:9])
def test_show_paints(name, variants):
    _, method, batch, state = built(name, variants)
    few = jax.tree.map(lambda x: x[:4], batch)
    panels = jax.jit(method.show)(state, few, jax.random.key(0))
    assert next(iter(panels)) == "input"
    shapes = {x.shape for x in panels.values()}
    assert shapes == {few["views"][0].shape}
    assert all(np.isfinite(x).all() for x in panels.values())


def test_what_must_stay_together():
    wanted = {"mae": 1, "simmim": 1, "mixedae": 4, "mimae": ALL, "misimmim": ALL}
    for name, together in wanted.items():
        assert built(name, "")[1].together == together
    for name in ("mimae", "misimmim"):
        assert built(name, "lam2=0,lam3=0,approx=0")[1].together == 1
