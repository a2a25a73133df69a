"""Batch norm over groups: whose statistics, when they change, what is sent for them."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.errors import UsageError
from mixjax.models import norms
from mixjax.sharding import meshes
from tests.conftest import USUAL
from tests.sharding.test_meshes import sent as collectives

SETTINGS = {"interleaved": False, "momentum": 0.9, "eps": 1e-5, "unbiased": True}


def layer(groups, affine=True, scale_init=nn.initializers.ones, **changes):
    norm = norms.make_norm(groups=groups, **SETTINGS | changes)
    return norm(affine=affine, scale_init=scale_init, name=None)


def draw(*shape, seed=0, mean=3.0):
    x = np.random.default_rng(seed).normal(mean, 2.0, shape)
    return jnp.asarray(x, jnp.float32)


def start(norm, x):
    """Variables with a scale and a bias that are not 1 and 0."""
    variables = norm.init(jax.random.key(0), x, train=False)
    params = {"scale": draw(x.shape[-1], seed=1), "bias": draw(x.shape[-1], seed=2)}
    return variables | {"params": params if "params" in variables else {}}


def run(norm, variables, x):
    """(y, statistics) of training."""
    y, new = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, new["batch_stats"]


def members(groups, batch, interleaved):
    """The examples of every group."""
    if interleaved:
        return [np.arange(batch)[s::groups] for s in range(groups)]
    return np.split(np.arange(batch), groups)


@pytest.mark.parametrize("groups, interleaved", [(8, True), (8, False), (1, False)])
@pytest.mark.parametrize("rest", [(5,), (3, 2, 5)])
def test_every_group_by_its_own_statistics(groups, interleaved, rest):
    """16 samples in 8 groups, as 8 GPUs would have it."""
    x = draw(16, *rest)
    norm = layer(groups, interleaved=interleaved)
    variables = start(norm, x)
    y, new = jax.jit(functools.partial(run, norm))(variables, x)
    scale, bias = (np.asarray(variables["params"][k]) for k in ("scale", "bias"))
    x, means, variances = np.asarray(x, np.float64), [], []
    for rows in members(groups, 16, interleaved):
        own = x[rows].reshape(-1, rest[-1])
        means.append(own.mean(axis=0))
        variances.append(own.var(axis=0, ddof=1))
        want = (x[rows] - own.mean(axis=0)) / np.sqrt(own.var(axis=0) + 1e-5)
        np.testing.assert_allclose(y[rows], want * scale + bias, atol=1e-4)
    np.testing.assert_allclose(new["mean"], 0.1 * np.mean(means, axis=0), rtol=1e-5)
    want = 0.9 + 0.1 * np.mean(variances, axis=0)
    np.testing.assert_allclose(new["var"], want, rtol=1e-5)


def test_the_biased_variance_may_run_too():
    x = draw(6, 4)
    norm = layer(1, unbiased=False)
    _, new = run(norm, start(norm, x), x)
    want = 0.9 + 0.1 * np.var(np.asarray(x), axis=0)
    np.testing.assert_allclose(new["var"], want, rtol=1e-5)


@pytest.mark.parametrize("groups, interleaved", [(8, True), (8, False), (1, False)])
def test_what_is_reversed_comes_out_reversed(groups, interleaved):
    x = draw(16, 4, 4, 3)
    norm = layer(groups, interleaved=interleaved)
    variables = start(norm, x)
    y, new = run(norm, variables, x)
    reverse, same = run(norm, variables, x[::-1])
    np.testing.assert_allclose(reverse, y[::-1], atol=1e-5)
    chex.assert_trees_all_close(new, same, rtol=1e-5)


def test_a_shuffle_shows_in_groups_alone():
    """What ShuffleBN is for: who shares statistics; with one group nobody can tell."""
    x = draw(16, 4, 4, 3)
    order = np.random.default_rng(0).permutation(16)
    for groups, same in ((1, True), (8, False)):
        norm = layer(groups)
        variables = start(norm, x)
        y, shuffled = (run(norm, variables, z)[0] for z in (x, x[order]))
        assert np.allclose(shuffled[np.argsort(order)], y, atol=1e-5) == same


def test_statistics_move_once_with_every_forward():
    """A clean and a mixed batch: own statistics for each, the last one weighs most."""
    clean, mixed = draw(8, 4), draw(8, 4, seed=3, mean=-1.0)
    norm = layer(2)
    variables = start(norm, clean)
    y, first = run(norm, variables, clean)
    z, second = run(norm, variables | {"batch_stats": first}, mixed)
    chex.assert_trees_all_equal(z, run(norm, variables, mixed)[0])
    want = 0.9 * (0.1 * clean.mean(axis=0)) + 0.1 * mixed.mean(axis=0)
    np.testing.assert_allclose(second["mean"], want, rtol=1e-5)
    both = jnp.concatenate([clean, mixed])
    together, _ = run(layer(1), variables, both)
    alone, _ = run(layer(1), variables, clean)
    assert float(jnp.abs(together[:8] - alone).max()) > 0.3


def test_evaluation_reads_statistics_and_leaves_them():
    x = draw(7, 4)
    norm = layer(2)  # which does not divide 7: no groups here
    variables = start(norm, x)
    stats = {"mean": draw(4, seed=5), "var": 1 + draw(4, seed=6) ** 2}
    variables |= {"batch_stats": stats}
    how = {"train": False, "mutable": ["batch_stats"]}
    y, after = norm.apply(variables, x, **how)
    chex.assert_trees_all_equal(after["batch_stats"], stats)
    want = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    want = want * variables["params"]["scale"] + variables["params"]["bias"]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_a_large_mean_costs_no_digits():
    x = draw(256, 3, mean=0.0)
    norm = layer(1, affine=False)
    variables = start(norm, x)
    near, _ = run(norm, variables, x)
    far, new = run(norm, variables, x + 1e4)
    np.testing.assert_allclose(far, near, atol=2e-3)  # 1e4 has digits down to 1e-3
    want = 0.9 + 0.1 * np.var(np.asarray(x), axis=0, ddof=1)
    np.testing.assert_allclose(new["var"], want, rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16_keeps_float32_statistics(groups):
    x = draw(512, 4, mean=20.0).astype(jnp.bfloat16)
    norm = layer(groups)
    variables = start(norm, x)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    y, new = run(norm, variables, x)
    assert y.dtype == jnp.bfloat16
    exact, same = run(norm, variables, x.astype(jnp.float32))
    chex.assert_trees_all_equal(new, same)
    chex.assert_trees_all_equal(y, exact.astype(jnp.bfloat16))
    assert new["mean"].dtype == new["var"].dtype == jnp.float32


def test_scale_and_bias():
    x = draw(6, 4)
    plain = layer(1, affine=False).init(jax.random.key(0), x, train=False)
    assert set(plain) == {"batch_stats"}
    variables = layer(1, scale_init=nn.initializers.zeros).init(
        jax.random.key(0), x, train=False
    )
    assert not variables["params"]["scale"].any()
    assert not variables["params"]["bias"].any()


# --- devices -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(fsdp=1)


def lowered(norm, mesh, outputs):
    """(name, shapes) of what is sent for `outputs` of (y, statistics)."""
    x = draw(16, 4, 4, 3)
    variables = jax.device_put(start(norm, x), meshes.replicated(mesh))
    step = jax.jit(lambda v, x: outputs(run(norm, v, x)))
    images = jax.device_put(x, meshes.batched(mesh))
    return collectives(step.lower(variables, images).compile().as_text())


@pytest.mark.parametrize("groups, quiet", [(8, True), (16, True), (1, False)])
def test_groups_send_nothing_forward(mesh, groups, quiet):
    sent = lowered(layer(groups), mesh, lambda found: found[0])
    assert {name for name, _ in sent} == (set() if quiet else {"all-reduce"})
    everything = lowered(layer(groups), mesh, lambda found: found)
    assert everything and {name for name, _ in everything} == {"all-reduce"}
    # Means and variances of channels, never activations.
    sizes = [n for _, shapes in everything for shape in shapes for n in shape]
    assert set(sizes) <= {2, 3}


@pytest.mark.parametrize("groups, interleaved", [(8, False), (2, True), (1, False)])
def test_one_device_or_eight(mesh, groups, interleaved):
    x = draw(16, 4, 4, 3)
    norm = layer(groups, interleaved=interleaved)
    variables = start(norm, x)

    def step(variables, x):
        y, new = run(norm, variables, x)
        return jnp.sum(y * draw(*y.shape, seed=7)), (y, new)

    # Compiled as in a run: without optimizations 1 number of 768 is off by 1.2e-5.
    step = jax.jit(jax.grad(step, argnums=1, has_aux=True), compiler_options=USUAL)
    alone = step(variables, x)
    spread = step(
        jax.device_put(variables, meshes.replicated(mesh)),
        jax.device_put(x, meshes.batched(mesh)),
    )
    chex.assert_trees_all_close(alone, spread, rtol=1e-5, atol=1e-5)


# --- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    "groups, batch, words",
    [
        (3, 16, r"groups=3 does not divide a batch of 16; the nearest .* 1, 2, 4\."),
        (32, 16, r"groups=32 does not divide a batch of 16; .* 4, 8, 16\."),
        (16, 16, r"groups=16 of a batch of 16 leaves one value to a statistic"),
    ],
)
def test_groups_that_do_not_fit(groups, batch, words):
    norm, x = layer(groups), draw(batch, 4)
    with pytest.raises(UsageError, match=r"^model\.norm\." + words):
        jax.eval_shape(functools.partial(run, norm), start(norm, x), x)


@pytest.mark.parametrize(
    "field, value", [("groups", 0), ("momentum", 1.5), ("momentum", -0.1), ("eps", 0.0)]
)
def test_values_that_make_no_sense(field, value):
    with pytest.raises(UsageError, match=rf"^model\.norm\.{field}={value} "):
        norms.make_norm(**SETTINGS | {"groups": 1, field: value})


def test_a_norm_that_is_missing():
    with pytest.raises(UsageError, match=r"^model\.norm is missing .*norm\(groups\)"):
        norms.missing(affine=True, name="bn1")
