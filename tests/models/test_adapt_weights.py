"""An encoder's weights in a network that differs in what fine-tuning changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.models import adapt_weights, positions

BEIT = {"name": "beit", "image_size": (16, 16), "channels": 1, "patch": 4, "width": 8}
BEIT |= {"depth": 2, "heads": 2, "mlp_ratio": 2.0, "layer_scale": 0.1, "drop_path": 0.0}
BEIT |= {"mask_token": True, "pool": "mean", "relative": "shared", "remat": "none"}
BEIT |= {"scan": False}
SWIN = {"name": "swin", "image_size": (48, 48), "channels": 1, "patch": 4, "width": 8}
SWIN |= {"depths": (2, 2), "heads": (2, 2), "window": 6, "mlp_ratio": 2.0}
SWIN |= {"drop_path": 0.0, "mask_token": True, "remat": "none"}
VIT = {"name": "vit", "image_size": (16, 16), "channels": 1, "patch": 4, "width": 8}
VIT |= {"depth": 1, "heads": 2, "mlp_ratio": 2.0, "drop_path": 0.0, "remat": "none"}
VIT |= {"position": "sincos", "pool": "class", "scan": False}


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf for path, leaf in leaves}


def weights(encoder, seed=0):
    """Every array of an encoder by path, all different."""
    size = (1, *encoder["image_size"], encoder["channels"])
    network = models.make({"precision": "float32", "encoder": encoder})
    image = jax.ShapeDtypeStruct(size, jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)[0]["encoder"]
    rng = np.random.default_rng(seed)
    return {
        k: rng.normal(size=s.shape).astype("f4") for k, s in by_path(shapes).items()
    }


def fit(old, new):
    found, wanted = weights(old), weights(new, 1)
    given, fresh = adapt_weights.adapt_part(
        "encoder", found, wanted, {"encoder": old}, {"encoder": new}
    )
    return found, wanted, given, fresh


def test_one_shared_table_becomes_one_for_each_block():
    new = BEIT | {"relative": "each", "pool": "mean_norm", "mask_token": False}
    found, wanted, given, fresh = fit(BEIT, new)
    assert fresh == {"fc_norm/scale", "fc_norm/bias"}
    assert given.keys() == wanted.keys() - fresh
    for block in (0, 1):
        table = given[f"blocks_{block}/attn/relative_bias"]
        np.testing.assert_array_equal(table, found["relative_bias"])
    same = given.keys() - {k for k in given if "relative_bias" in k}
    for name in same:
        np.testing.assert_array_equal(given[name], found[name])


def test_tables_grow_with_the_picture():
    new = BEIT | {"image_size": (24, 20), "relative": "each"}
    found, wanted, given, _ = fit(BEIT, new)
    want = positions.resize_relative(found["relative_bias"], (4, 4), (6, 5))
    np.testing.assert_array_equal(given["blocks_1/attn/relative_bias"], want)
    assert {k: v.shape for k, v in given.items()} == {
        k: v.shape for k, v in wanted.items()
    }


def test_windows_of_six_become_windows_of_seven():
    new = SWIN | {"image_size": (56, 56), "window": 7, "mask_token": False}
    found, wanted, given, fresh = fit(SWIN, new)
    assert not fresh and given.keys() == wanted.keys()
    name = "stage_0/blocks_1/attn/relative_bias"
    want = positions.resize_relative(found[name], (6, 6), (7, 7))
    np.testing.assert_array_equal(given[name], want)
    assert given[name].shape == wanted[name].shape == (13 * 13, 2)


@pytest.mark.parametrize("grid", [(4, 4), (6, 5)])
def test_fixed_positions_become_parameters(grid):
    size = (4 * grid[0], 4 * grid[1])
    new = VIT | {"position": "learned", "pool": "mean_norm", "image_size": size}
    _, wanted, given, fresh = fit(VIT, new)
    assert given.keys() == wanted.keys() - fresh
    table = jnp.asarray(positions.sincos_2d((4, 4), 8, class_token=True))
    want = positions.resize(table, (4, 4), grid) if grid != (4, 4) else table
    np.testing.assert_allclose(given["pos_embed"][0], want, atol=1e-6)


def test_what_else_differs_is_left_for_refusal():
    """Another width, or a norm that both have: nothing is dropped or made up."""
    _, _, given, fresh = fit(VIT, VIT | {"width": 16})
    assert not fresh and "norm/scale" in given
    assert given["norm/scale"].shape == (8,)
    _, wanted, given, fresh = fit(BEIT, VIT | {"position": "learned"})
    assert "pos_embed" in wanted and "pos_embed" not in given and not fresh


def test_other_parts_are_taken_as_they_are():
    found = {"mask_token": np.ones(3)}
    parts = {"encoder": VIT}, {"encoder": BEIT}
    assert adapt_weights.adapt_part("decoder", found, {}, *parts) == (found, set())
