"""Residual networks against torchvision's and timm's: values, gradients, statistics."""

import chex
import jax
import jax.numpy as jnp
import pytest

from mixjax import models
from tests.parity import resnet_names
from tests.parity.torch_names import images


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def network(ref, named, **changes):
    """The network that the weights of a file belong to."""
    c = {"precision": "float32", "norm": {"groups": 1, "interleaved": False}}
    c["norm"] |= {"momentum": 1 - ref["hp/bn_momentum"], "eps": ref["hp/bn_eps"]}
    c["norm"]["unbiased"] = True
    c["encoder"] = resnet_names.encoder(named, ref["in/x"], **changes)
    if "fc.weight" in named:
        c["classifier"] = {
            "classes": len(named["fc.weight"]),
            "init_std": 0.01,
            "feature_norm": False,
        }
    return models.make(c)


def check_maps(ref, mode, outputs):
    ref.check(f"{mode}_features", outputs["features"])
    for i, x in enumerate(outputs["stages"], start=1):
        ref.check(f"{mode}_layer{i}_mean", x.mean(axis=(1, 2)))


def check_all(ref, expected, found):
    """Every array of {torch's name: array} against ours; found: name -> our array."""
    for name, array in expected.items():
        key = next(k for k in ("updated", "grad") if f"out/{k}/{name}" in ref.arrays)
        ref.check(f"{key}/{name}", found(name), resnet_names.to_ours(name, array))


NAMES = ["resnet18_cifar", "resnet18_cifar_narrow", "resnet50_small"]


@pytest.mark.parametrize("name", NAMES)
def test_resnet(reference, name):
    ref = reference(name)
    named = resnet_names.weights(ref)
    net = network(ref, named)
    params, stats = jax.tree.map(jnp.asarray, resnet_names.trees(named))
    x = jnp.asarray(images(ref["in/x"]))
    start = jax.eval_shape(net.init, jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(start, (params, stats))

    def run(params, stats, train):
        given = {"encoder": {"stages": True}}
        outputs, stats = net.apply(params, stats, x, train=train, **given)
        weighted = jnp.sum(outputs["features"] * ref["in/cotangent"])
        return weighted, (outputs, stats)

    evaluate = jax.jit(lambda stats: run(params, stats, False)[1])
    outputs, unchanged = evaluate(stats)
    check_maps(ref, "eval", outputs)
    if "logits" in outputs:
        ref.check("eval_logits", outputs["logits"])
    chex.assert_trees_all_equal(unchanged, stats)
    step = jax.jit(jax.grad(lambda p: run(p, stats, True), has_aux=True))
    grads, (outputs, new) = step(params)
    check_maps(ref, "train", outputs)
    check_all(ref, ref.part("out/grad"), lambda n: resnet_names.at(grads, {}, n))
    updated = ref.part("out/updated")
    assert len(updated) == len(jax.tree.leaves(stats))
    check_all(ref, updated, lambda n: resnet_names.at({}, new, n))
    ref.check("eval_features_after", evaluate(new)[0]["features"])
