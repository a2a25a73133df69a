"""Batch statistics of weights as they are: the moments of some batches together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.evals.precise import precise
from mixjax.models import norms

KEEP = 0.9


def layer(unbiased=False):
    norm = norms.make_norm(
        groups=1, interleaved=False, momentum=KEEP, eps=1e-5, unbiased=unbiased
    )
    return norm(affine=False, scale_init=None, name=None)


def setting(**how):
    """(update, stats of two norms that are far off, four batches)."""
    norm = layer(**how)

    def update(stats, batch):
        x, misses_two = batch
        new = {}
        for name, factor in (("one", 1.0), ("two", 100.0)):
            _, found = norm.apply(
                stats[name], factor * x, train=True, mutable=["batch_stats"]
            )
            new[name] = found
        both = lambda old, other: jnp.where(misses_two, old, other)
        new["two"] = jax.tree.map(both, stats["two"], new["two"])
        return new

    rng = np.random.default_rng(0)
    draws = rng.normal(rng.normal(5, 3, (4, 1, 3)), 2.0, (4, 50, 3))
    leaf = {"batch_stats": {"mean": jnp.full(3, 7.0), "var": jnp.full(3, 9.0)}}
    return jax.jit(update), {"one": leaf, "two": leaf}, draws


def batches(draws, missed=()):
    return [(jnp.asarray(x, "f4"), i in missed) for i, x in enumerate(draws)]


def test_moments_of_all_batches_together():
    """Not the average of the variances alone: here the means lie far apart."""
    update, stats, draws = setting()
    found = precise(update, stats, batches(draws), KEEP)
    for name, factor in (("one", 1.0), ("two", 100.0)):
        whole, leaf = factor * draws.reshape(-1, 3), found[name]["batch_stats"]
        np.testing.assert_allclose(leaf["mean"], whole.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(leaf["var"], whole.var(axis=0), rtol=1e-5)
        assert leaf["var"].dtype == jnp.float32
        assert leaf["var"].sharding == stats[name]["batch_stats"]["var"].sharding


def test_unbiased_variances_stay_so():
    update, stats, draws = setting(unbiased=True)
    leaf = precise(update, stats, batches(draws), KEEP)["one"]["batch_stats"]
    own = draws.var(axis=1, ddof=1).mean(axis=0) + draws.mean(axis=1).var(axis=0)
    np.testing.assert_allclose(leaf["var"], own, rtol=1e-5)


@pytest.mark.parametrize("missed", [(0, 2), (0, 1, 2, 3)])
def test_batches_that_miss_a_norm_do_not_count(missed):
    update, stats, draws = setting()
    found = precise(update, stats, batches(draws, missed), KEEP)
    mean = found["two"]["batch_stats"]["mean"]
    left = np.delete(draws, missed, axis=0)
    want = 100 * left.reshape(-1, 3).mean(axis=0) if len(left) else np.full(3, 7.0)
    np.testing.assert_allclose(mean, want, rtol=1e-5)
    want = draws.reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(found["one"]["batch_stats"]["mean"], want, rtol=1e-5)


def test_statistics_that_keep_everything():
    update, stats, draws = setting()
    with pytest.raises(ValueError, match=r"statistics that keep 1\.0 of themselves"):
        precise(update, stats, batches(draws), 1.0)
