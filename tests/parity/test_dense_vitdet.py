"""ViTDet's backbone and pyramid against transformers' and detectron2's."""

import chex
import jax
import jax.numpy as jnp
import pytest

from mixjax import models
from tests.parity import dense_names
from tests.parity.dense_names import as_torch
from tests.parity.torch_names import images

RULES = dense_names.vitdet()


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def network(ref, **changes):
    """The network that the weights of a file belong to."""
    patch, depth = ref["hp/patch_size"], ref["hp/depth"]
    assert ref["hp/layernorm_eps"] == 1e-6
    encoder = {
        "name": "vit_dense",
        "image_size": (ref["hp/img_size"],) * 2,
        "channels": ref["in/imgs"].shape[1],
        "patch": patch,
        "width": ref["hp/hidden_size"],
        "depth": depth,
        "heads": ref["hp/num_heads"],
        "mlp_ratio": float(ref["hp/mlp_ratio"]),
        "drop_path": 0.0,
        "class_token": False,
        "pretrained_grid": (ref["hp/pretrain_img_size"] // patch,) * 2,
        "relative": "decomposed",
        "window": ref["hp/window_size"],
        "global_blocks": tuple(sorted(set(range(depth)) - {*ref["hp/window_blocks"]})),
        "layer_scale": False,
        "taps": tuple(range(depth)),
        "remat": "none",
        **changes,
    }
    pyramid = {"width": ref["hp/pyramid_channels"]}
    c = {"precision": "float32", "encoder": encoder, "simple_pyramid": pyramid}
    return models.make(c)


def loaded(ref):
    params, stats = dense_names.trees(ref.part("params"), RULES)
    assert not stats
    return jax.tree.map(jnp.asarray, params)


def test_maps_and_pyramid(reference):
    ref = reference("dense_vitdet")
    net, params = network(ref), loaded(ref)
    x = jnp.asarray(images(ref["in/imgs"]))
    start = jax.eval_shape(net.init, jax.random.key(0), x)[0]
    chex.assert_trees_all_equal_shapes(start, params)
    outputs, _ = jax.jit(lambda p, x: net.apply(p, {}, x, train=False))(params, x)
    for i, found in enumerate(outputs["maps"], start=1):
        ref.check(f"stage{i}", as_torch(found))
    for i, found in enumerate(outputs["pyramid"], start=2):
        ref.check(f"pyramid_p{i}", as_torch(found))
    chex.assert_trees_all_equal(outputs["map"], outputs["maps"][-1])
    mean = ref.arrays[f"out/stage{ref['hp/depth']}"].mean(axis=(2, 3))
    chex.assert_trees_all_close(outputs["features"], mean, atol=1e-4)


def test_positions(reference):
    """Before the first block: patches, and the table on a larger grid."""
    ref = reference("dense_vitdet")
    net = network(ref, depth=0, taps=(), global_blocks=())
    x = jnp.asarray(images(ref["in/imgs"]))
    encode = jax.jit(lambda p, x: net.encode(p, {}, x)["map"])
    ref.check("stage0", as_torch(encode(loaded(ref), x)))


def test_another_size_than_the_tables(reference):
    ref = reference("dense_vitdet")
    net, params = network(ref), loaded(ref)
    assert net.geometry.any_size
    x = jnp.asarray(images(ref["in/imgs_rect"]))
    assert x.shape[1:3] != net.geometry.image_size
    encode = jax.jit(lambda p, x: net.encode(p, {}, x)["map"])
    ref.check("last_rect", as_torch(encode(params, x)))


@pytest.mark.parametrize("remat", ["none", "block", "dots"])
def test_gradients(reference, remat):
    ref = reference("dense_vitdet")
    net, params = network(ref, remat=remat), loaded(ref)
    x = jnp.asarray(images(ref["in/imgs"]))
    cotangent = jnp.asarray(images(ref["in/cotangent"]))

    def weighted(encoder):
        found = net.encode(params | {"encoder": encoder}, {}, x)
        return jnp.sum(found["map"] * cotangent)

    grads = {"encoder": jax.jit(jax.grad(weighted))(params["encoder"])}
    dense_names.check_all(ref, "grad", grads, {}, RULES)
