"""MI-MAE: the parts that each loss trains, the gate, and the lengths of its recipes."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, models
from mixjax.config import recipes
from mixjax.errors import UsageError
from mixjax.optim import schedules
from mixjax.optim.schedules import Clock
from mixjax.state import TrainState
from mixjax.training import build
from tests.support import tiny

PARTS = ("encoder", "decoder", "variational")


@functools.cache
def made(variants="", name="mimae"):
    config = tiny.masked(name, variants)
    method = methods.make(config.method, models.make(config.model), clock=Clock(10, 10))
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 1))
    batch = {"views": (images,), "index": jnp.arange(8)}
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    state = TrainState(step=jnp.int32(0), opt_state={}, **variables._asdict())
    return method, state, batch


def gradient(variants, state=None, name="mimae"):
    method, first, batch = made(variants, name)
    state = first if state is None else state
    loss = lambda p: method.loss(p, state, batch, jax.random.key(3))[0]
    return jax.jit(jax.grad(loss))(state.params)


def touched(grads) -> set[str]:
    nonzero = lambda tree: any(np.abs(x).max() > 0 for x in jax.tree.leaves(tree))
    return {part for part, tree in grads.items() if nonzero(tree)}


@pytest.mark.parametrize(
    "only, parts",
    [
        ("lam1=1,lam2=0,lam3=0,approx=0", {"encoder", "decoder"}),
        ("lam1=0,lam2=1,lam3=0,approx=0", {"encoder"}),
        ("lam1=0,lam2=0,lam3=1,approx=0", {"encoder"}),
        ("lam1=0,lam2=0,lam3=0,approx=1", {"variational"}),
    ],
)
def test_which_loss_touches_what(only, parts):
    """The table of the spec's section 6.6 (trap 9), and zero means exactly 0."""
    assert touched(gradient(only + ",gate=open")) == parts


def test_behind_the_closed_gate_is_plain_reconstruction():
    closed = gradient("gate=latch")
    alone = gradient("lam2=0,lam3=0,approx=0,gate=latch")
    for part in ("encoder", "decoder"):  # equal but for the rounding of two programs
        chex.assert_trees_all_close(closed[part], alone[part], rtol=1e-5, atol=1e-8)


def test_no_variance_is_zero():
    """All pre-activations at or below 0: losses and gradients stay finite."""
    method, state, batch = made("gate=open")
    params = jax.tree.map(lambda x: x, state.params)
    params["variational"]["var"]["fc3"] = jax.tree.map(
        jnp.zeros_like, params["variational"]["var"]["fc3"]
    )
    evaluate = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    (loss, aux), grads = evaluate(params, state, batch, jax.random.key(0))
    assert np.isfinite(loss) and all(np.isfinite(v) for v in aux.metrics.values())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_the_gate_opens_and_survives_a_resume(tmp_path):
    """Killed and continued is the unbroken run, bit for bit, its memory too."""
    settings = tiny.masked("mimae", "gate=latch", method__gate__level=1.5, steps=12)
    unbroken = tiny.run(tmp_path / "unbroken", settings)
    gates = tiny.metrics(unbroken, "train/gate")
    assert gates[1] == 0 and gates[12] > 0  # means since the last line
    for checks in (3, 9):
        tiny.run(tmp_path / "broken", settings, tiny.StopAt(checks))
    tiny.run(tmp_path / "broken", settings)
    tiny.assert_same_run(unbroken, tmp_path / "broken", 12)
    saved = tiny.saved_arrays(unbroken, 12)
    assert saved["['memory']['open']"] == 1 and saved["['memory']['steps']"] == 12


def test_pools_and_inputs():
    method, state, batch = made("gate=open")
    for field, values in {
        "latent_pool": ("mean_all", "mean_patch", "class", "flatten"),
        "variational_input": ("embedding", "embedding_and_position", "pixels"),
    }.items():
        losses = set()
        for value in values:
            config = tiny.masked("mimae", "gate=open")
            config.method[field] = value
            network = models.make(config.model)
            pooled = methods.make(config.method, network, clock=Clock(10, 10))
            start = jax.eval_shape(pooled.init, jax.random.key(0), batch)
            blank = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), start.params)
            params = {**blank, "encoder": state.params["encoder"]}
            loss, _ = pooled.loss(params, state, batch, jax.random.key(0))
            assert np.isfinite(loss)
            losses.add(float(loss))
        assert len(losses) == len(values)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method__mask_ratio": 1.0}, "method.mask_ratio=1.0 keeps 0 of 16 patches"),
        ({"method__mask_mode": "circle"}, "method.mask_mode.*'circular'"),
        ({"method__latent_pool": "cls"}, "method.latent_pool.*'class'"),
        ({"method__information__negatives": "view"}, "negatives.*'views'"),
        ({"method__gate__mode": "latched"}, "method.gate.mode.*'latch'"),
        ({"method__views": 1}, "method.views=1: .* need at least 2"),
    ],
)
def test_wrong_switches(changes, message):
    config = tiny.masked("mimae", **changes)
    with pytest.raises(UsageError, match=message):
        method = methods.make(
            config.method, models.make(config.model), clock=Clock(9, 9)
        )
        batch = made()[2]
        jax.eval_shape(method.init, jax.random.key(0), batch)


# --- recipes ---------------------------------------------------------------------


def schedule_of(name, examples=1_281_167):
    c = recipes.load(f"{tiny.ROOT}/configs/{name}")
    clock = build.make_clock(c, examples // c.batch)
    return schedules.make(c.schedule, batch=c.batch, clock=clock), clock, c


def test_lengths_and_rates():
    """Trap 5: steps and rates of the recipes."""
    rate, clock, _ = schedule_of("mae_vitb.py:epochs=800")
    assert clock.total_steps == 800 * 312
    assert rate(0) == 0
    np.testing.assert_allclose(rate(40 * 312), 2.4e-3, rtol=1e-5)
    rate, clock, _ = schedule_of("mimae_vitb.py")
    assert clock.total_steps == 250_200
    np.testing.assert_allclose(rate(10 * 1251), 2.4e-3, rtol=1e-5)
    np.testing.assert_allclose(rate(250_200), 0, atol=1e-9)
    rate, clock, _ = schedule_of("mixedae_vitb.py")
    np.testing.assert_allclose(rate(40 * 312), 1.2e-3, rtol=1e-5)
    rate, _, _ = schedule_of("mixedae_vitl.py")
    np.testing.assert_allclose(rate(40 * 625), 6e-4, rtol=1e-5)
    rate, _, _ = schedule_of("mixedae_vitb.py:attend=masked_sa,segment=0,homocon=0")
    np.testing.assert_allclose(rate(40 * 312), 2.4e-3, rtol=1e-5)
    rate, clock, _ = schedule_of("simmim_swinb.py")
    np.testing.assert_allclose(rate(0), 5e-7 * 4, rtol=1e-5)
    np.testing.assert_allclose(rate(11 * 625), 4e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(700 * 625 - 1), 4e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(700 * 625), 4e-5, rtol=1e-5)
    rate, clock, _ = schedule_of("misimmim_swinb.py")
    np.testing.assert_allclose(rate(6 * 1251), 4e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(350 * 1251 - 1), 4e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(350 * 1251), 4e-5, rtol=1e-5)


def rows():
    """Every command of configs/README.md with an autoencoder."""
    text = (tiny.ROOT / "configs" / "README.md").read_text()
    commands = re.findall(r"`(\w+\.py(?::[^`\s]*)?)((?: --config\.\S+)*)`", text)
    masked = ("mae_", "mimae_", "misimmim_", "mixedae_", "simmim_")
    return sorted(
        {(file, flags) for file, flags in commands if file.startswith(masked)}
    )


@pytest.mark.parametrize("file, flags", rows())
def test_every_row_of_the_table_builds(file, flags):
    argv = [f"--config={tiny.ROOT}/configs/{file}", *flags.split()]
    c, _ = recipes.read(argv)
    network = models.make(c.model)
    method = methods.make(c.method, network, clock=Clock(10, 10))
    shape = (1, *network.geometry.image_size, network.geometry.channels)
    batch = {
        "views": (jax.ShapeDtypeStruct(shape, jnp.float32),),
        "index": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    jax.eval_shape(method.init, jax.random.key(0), batch)
