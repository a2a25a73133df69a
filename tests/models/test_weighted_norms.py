"""Batch statistics of some positions alone: as if the others had not been there."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.models import norms
from mixjax.models.res5 import Res5
from mixjax.models.resnet import inside, strided

NORM = {"interleaved": False, "momentum": 0.9, "eps": 1e-5, "unbiased": True}


def layer(groups=1, **changes):
    norm = norms.make_norm(groups=groups, **NORM | changes)
    return norm(affine=True, scale_init=nn.initializers.ones, name=None)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(3.0, 2.0, shape), "f4")


def run(norm, x, weights=None, **how):
    """(y, statistics) of training, from statistics that are not 0 and 1."""
    variables = {
        "params": {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    }
    stats = {"mean": draw(x.shape[-1], seed=8), "var": draw(x.shape[-1], seed=9) ** 2}
    variables |= {"batch_stats": stats}
    how |= {"train": True, "mutable": ["batch_stats"], "weights": weights}
    y, new = jax.jit(functools.partial(norm.apply, **how))(variables, x)
    return y, new["batch_stats"]


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("rest", [(5,), (3, 2, 5)])
def test_rows_of_weight_0_might_as_well_not_be_there(unbiased, rest):
    x, valid = draw(12, *rest), np.arange(12) % 3 != 1
    x = jnp.where(valid.reshape(-1, *[1] * len(rest)), x, 1e4)  # what padding holds
    weights = jnp.asarray(valid.reshape(-1, *[1] * (len(rest) - 1)))
    norm = layer(unbiased=unbiased)
    y, new = run(norm, x, weights)
    want, same = run(norm, x[valid])
    np.testing.assert_allclose(y[valid], want, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(new, same, rtol=1e-5)
    assert np.isfinite(y).all() and np.abs(y[~valid]).min() > 100  # normalised, too


@pytest.mark.parametrize("interleaved", [True, False])
def test_each_group_counts_its_own(interleaved):
    """Groups of 4 rows, of which 4, 1 and 0 count."""
    x, chosen = draw(12, 2, 5), np.zeros((3, 4), bool)
    chosen[0], chosen[1, 2] = True, True
    of_row = chosen.T.reshape(12) if interleaved else chosen.reshape(12)
    weights = jnp.asarray(of_row[:, None], jnp.float32)
    y, new = run(layer(3, interleaved=interleaved), x, weights)
    rows = np.arange(12).reshape((4, 3) if interleaved else (3, 4))
    rows = rows.T if interleaved else rows
    means, variances = [], []
    for members, counted in zip(rows[:2], chosen[:2], strict=True):
        own = np.asarray(x, np.float64)[members]
        some = own[counted].reshape(-1, 5)
        want = (own - some.mean(axis=0)) / np.sqrt(some.var(axis=0) + 1e-5)
        np.testing.assert_allclose(y[members], want, rtol=1e-3, atol=1e-3)
        means.append(some.mean(axis=0))
        variances.append(some.var(axis=0, ddof=1))
    old = draw(5, seed=8), draw(5, seed=9) ** 2
    both = zip(("mean", "var"), old, (means, variances), strict=True)
    for name, before, found in both:
        want = 0.9 * before + 0.1 * np.mean(found, axis=0)
        np.testing.assert_allclose(new[name], want, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_few_positions_are_safe(count):
    x = draw(6, 4)
    weights = jnp.arange(6) < count

    def loss(x):
        y, new = run(layer(), x, weights)
        return (y * weights[:, None]).sum(), new

    (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    chex.assert_tree_all_finite((value, new, gradient))
    if not count:
        old = {"mean": draw(4, seed=8), "var": draw(4, seed=9) ** 2}
        chex.assert_trees_all_equal(new, old)


def test_weights_of_1_are_no_weights_and_evaluation_has_none():
    x = draw(8, 3, 3, 5)
    y, new = run(layer(2), x)
    some, same = run(layer(2), x, jnp.ones((8, 3, 1)))
    np.testing.assert_allclose(some, y, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(new, same, rtol=1e-5)
    norm = layer()
    variables = norm.init(jax.random.key(0), x, train=False)
    weighted = norm.apply(variables, x, train=False, weights=jnp.zeros((8, 1, 1)))
    plain = norm.apply(variables, x, train=False)
    np.testing.assert_array_equal(weighted, plain)


def test_without_weights_the_formula_is_the_plain_one():
    """To the bit for what comes out; running statistics may round once more."""
    x = draw(8, 4, 5)
    y, new = run(layer(2, unbiased=True), x)

    @jax.jit
    def formula(x):
        parts = x.reshape(2, 4, 4, 5)
        mean = parts.mean(axis=(1, 2), keepdims=True)
        var = jnp.square(parts - mean).mean(axis=(1, 2), keepdims=True)
        moved = jnp.stack([mean, var]).reshape(2, -1, 5)
        moved = (1 - 0.9) * moved.mean(axis=1)
        keep = [0.9 * draw(5, seed=8), 0.9 * draw(5, seed=9) ** 2]
        factor = jax.lax.rsqrt(var + 1e-5) * jnp.ones(5)
        y = (parts - mean) * factor + jnp.zeros(5)
        return y.reshape(x.shape), keep[0] + moved[0], keep[1] + 16 / 15 * moved[1]

    want = formula(x)
    np.testing.assert_array_equal(y, want[0])
    np.testing.assert_allclose(new["mean"], want[1], rtol=1e-6)
    np.testing.assert_allclose(new["var"], want[2], rtol=1e-6)


# --- pictures on a larger canvas ---------------------------------------------------


def test_places_of_a_picture_at_every_stride():
    hw = jnp.asarray([[37, 64], [1, 33]])
    seen = inside(hw, 2, (32, 32))
    for stride in (2, 4, 8, 16):
        want = np.zeros(seen.shape)
        for i, (h, w) in enumerate(hw):
            want[i, : -(-h // stride), : -(-w // stride)] = 1
        np.testing.assert_array_equal(seen, want)
        np.testing.assert_array_equal(seen, inside(hw, stride, seen.shape[1:]))
        seen = strided(seen, 2)
    assert strided(None, 2) is None


ENCODER = dict(name="resnet", image_size=(40, 48), channels=3, block="bottleneck")
ENCODER |= dict(layers=(1, 1), widths=(2, 3), stem="imagenet", stem_width=4)
ENCODER |= dict(stem_init="kaiming", zero_init=False, remat="none")


@functools.cache
def trained(block, remat, layers=(1, 1)):
    """(a function of images and sizes -> map and statistics, initial statistics)."""
    encoder = ENCODER | {"block": block, "remat": remat, "layers": layers}
    config = {"precision": "float32", "norm": NORM | {"groups": 1}, "encoder": encoder}
    net = models.make(config)
    params, stats = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 40, 48, 3)))

    @jax.jit
    def run(images, hw):
        given = {"encoder": {"hw": hw}}
        outputs, new = net.apply(params, stats, images, train=True, **given)
        return outputs["map"], new["encoder"]["batch_stats"]

    return run


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_padding_is_in_no_statistic_of_the_first_norm(block):
    """The first norm's are those of a canvas of the picture's own size.

    It sees the same convolution there; later ones are moved by what lies beyond.
    """
    run = trained(block, "none")
    images = draw(1, 40, 48, 3).at[:, 24:].set(0).at[:, :, 32:].set(0)
    _, padded = run(images, jnp.asarray([[24, 32]]))
    _, blind = run(images, jnp.asarray([[40, 48]]))
    _, alone = run(images[:, :24, :32], None)
    chex.assert_trees_all_close(padded["bn1"], alone["bn1"], rtol=1e-4, atol=1e-6)
    assert np.abs(blind["bn1"]["mean"] - alone["bn1"]["mean"]).max() > 1e-3


@pytest.mark.parametrize("block, remat", [("basic", "none"), ("bottleneck", "block")])
def test_what_is_far_beyond_a_picture_changes_nothing(block, remat):
    """Statistics of all layers read nothing beyond what convolutions reach.

    The far end of the canvas is other noise: no norm may see the difference.
    """
    run = trained(block, remat)
    near = draw(2, 40, 48, 3)
    far = near.at[:, :, 40:].add(draw(2, 40, 8, 3, seed=4))
    hw = jnp.asarray([[40, 8], [33, 9]])
    one, two = run(near, hw)[1], run(far, hw)[1]
    chex.assert_trees_all_close(one, two, rtol=1e-6, atol=1e-7)
    whole = jnp.asarray([[40, 48]] * 2)
    one, two = run(near, whole)[1], run(far, whole)[1]
    for leaf, other in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.abs(leaf - other).max() > 1e-5


def test_canvases_that_are_full_and_none_agree():
    run = trained("bottleneck", "none")
    images = draw(2, 40, 48, 3)
    plain, full = run(images, None), run(images, jnp.asarray([[40, 48]] * 2))
    chex.assert_trees_all_close(plain, full, rtol=1e-4, atol=1e-4)


# --- regions -----------------------------------------------------------------------


@pytest.mark.parametrize("extra_norm", [True, False])
@pytest.mark.parametrize("remat", ["none", "block"])
def test_rows_without_a_region_are_in_no_statistic_of_res5(extra_norm, remat):
    norm = norms.make_norm(groups=1, **NORM)
    part = Res5("bottleneck", 2, 3, extra_norm, remat, norm, jnp.float32)
    x, valid = draw(6, 4, 4, 8), jnp.asarray([1, 1, 0, 1, 0, 1], bool)
    how = {"regions": x, "valid": valid}
    init = jax.jit(functools.partial(part.init, train=False))
    variables = init(jax.random.key(0), {}, **how)
    names = {"layer4_0", "layer4_1"} | ({"norm"} if extra_norm else set())
    assert variables["params"].keys() == variables["batch_stats"].keys() == names

    @jax.jit
    def run(regions, valid):
        how = {"train": True, "mutable": ["batch_stats"]}
        return part.apply(variables, {}, regions=regions, valid=valid, **how)

    found, new = run(x, valid)
    want, same = run(x[valid], jnp.ones(4, bool))
    assert found["regions"].shape == (6, 2, 2, 12)
    near = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found["regions"][valid], want["regions"], **near)
    chex.assert_trees_all_close(new, same, **near)
    assert (found["regions"][valid].min() < 0) == extra_norm  # no ReLU behind it
