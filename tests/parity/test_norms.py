"""Split batch norm against that of the CIFAR scripts of Un-Mix, and the plain one."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mixjax.models import norms


def images(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def layer(ref, groups):
    """The norm of a file, and what it starts from."""
    momentum = 1 - ref["hp/momentum"]
    how = {"groups": groups, "interleaved": True, "momentum": momentum}
    norm = norms.make_norm(**how, eps=ref["hp/eps"], unbiased=True)
    w = ref.part("params")
    stats = {"mean": w["running_mean"], "var": w["running_var"]}
    weights = {"scale": w["weight"], "bias": w["bias"]}
    return norm(affine=True, scale_init=nn.initializers.ones, name=None), {
        "params": jax.tree.map(jnp.asarray, weights),
        "batch_stats": jax.tree.map(jnp.asarray, stats),
    }


@pytest.mark.parametrize("kind", ["split", "plain"])
def test_split_batchnorm(reference, kind):
    ref = reference("split_batchnorm")
    groups = ref["hp/num_splits"] if kind == "split" else 1
    norm, variables = layer(ref, groups)
    x, stats = images(ref["in/x"]), variables["batch_stats"]

    def run(weights, x):
        given = {"params": weights, "batch_stats": stats}
        y, changed = norm.apply(given, x, train=True, mutable=["batch_stats"])
        loss = jnp.sum(y * images(ref["in/cotangent"]))
        return loss, (y, changed["batch_stats"])

    grad = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))
    grads, (y, new) = grad(variables["params"], x)
    first = "" if kind == "split" else "plain_"
    ref.check(f"{first}train", y.transpose(0, 3, 1, 2))
    ref.check(f"{first}updated/running_mean", new["mean"])
    ref.check(f"{first}updated/running_var", new["var"])
    if kind == "split":  # the file has no gradients of the plain one
        ref.check("grad_x", grads[1].transpose(0, 3, 1, 2))
        ref.check("grad/weight", grads[0]["scale"])
    still = jax.jit(lambda x: norm.apply(variables, x, train=False))(x)
    ref.check("eval", still.transpose(0, 3, 1, 2))
    assert not jnp.allclose(still, y, atol=0.1)
    chex.assert_trees_all_equal_shapes(new, stats)
