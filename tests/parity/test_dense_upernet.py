"""UperNet's neck, heads and losses against transformers' and mmsegmentation's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.models import norms, upernet
from mixjax.objectives.segmentation import segmentation_cross_entropy
from tests.parity import dense_names
from tests.parity.dense_names import as_torch
from tests.parity.torch_names import images

RULES = dense_names.upernet()
PARTS = ("neck", "uper_head", "fcn_head")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def norm(ref) -> dict:
    how = {"groups": 1, "interleaved": False, "momentum": 1 - ref["hp/bn_momentum"]}
    return how | {"eps": ref["hp/bn_eps"], "unbiased": True}


def network(ref, **changes):
    """The parts that the weights of a file belong to, and an encoder of their width."""
    stride = ref["hp/stride"]
    grid = ref["in/block_map0"].shape[2:]
    encoder = {
        "name": "vit_dense",
        "image_size": tuple(stride * n for n in grid),
        "channels": 1,
        "patch": stride,
        "width": ref["hp/embed_dim"],
        "depth": 4,
        "heads": 1,
        "mlp_ratio": 1.0,
        "drop_path": 0.0,
        "class_token": True,
        "pretrained_grid": grid,
        "relative": "none",
        "window": 0,
        "global_blocks": (),
        "layer_scale": False,
        "taps": (0, 1, 2, 3),
        "remat": "none",
    }
    head = {"classes": ref["hp/num_classes"], "dropout": 0.0}
    scales = tuple(ref["hp/pool_scales"].tolist())
    uper = {"width": ref["hp/channels"], "scales": scales, "remat": False, **changes}
    fcn = {"width": ref["hp/aux_channels"], "map": 2}
    c = {"precision": "float32", "norm": norm(ref), "encoder": encoder, "neck": {}}
    return models.make(c | {"uper_head": head | uper, "fcn_head": head | fcn})


def loaded(ref):
    """(params, stats, the maps that blocks hand over)."""
    trees = dense_names.trees(ref.part("params"), RULES)
    params, stats = jax.tree.map(jnp.asarray, trees)
    maps = [jnp.asarray(images(ref[f"in/block_map{i}"])) for i in range(4)]
    return params, stats, {"maps": tuple(maps)}


def test_eval(reference):
    ref = reference("dense_upernet")
    net, (params, stats, given) = network(ref), loaded(ref)
    size = (1, *net.geometry.image_size, 1)
    x = jax.ShapeDtypeStruct(size, jnp.float32)
    start = jax.eval_shape(net.init, jax.random.key(0), x)
    parts = [{k: v for k, v in tree.items() if k != "encoder"} for tree in start]
    chex.assert_trees_all_equal_shapes(parts, [params, stats])
    run = jax.jit(lambda p, s, o: net.run(p, s, o, PARTS, train=False))
    outputs, unchanged = run(params, stats, given)
    for i, found in enumerate(outputs["pyramid"]):
        ref.check(f"neck{i}", as_torch(found))
    ref.check("logits_eval", as_torch(outputs["logits"]))
    ref.check("aux_logits_eval", as_torch(outputs["aux_logits"]))
    chex.assert_trees_all_equal(unchanged, stats)


def test_pooled_branches(reference):
    """The map of the coarsest level, its means in bins that overlap."""
    ref = reference("dense_upernet")
    params, stats, _ = loaded(ref)
    x = jnp.asarray(images(ref.arrays["out/neck3"]))
    found = [k for k in ref.arrays if k.startswith("out/ppm_branch")]
    assert found
    for key in found:
        i = int(key.removeprefix("out/ppm_branch"))
        how = ref["hp/pool_scales"][i], ref["hp/channels"], norms.make_norm(**norm(ref))
        pool, name = upernet.Pool(*map(int, how[:2]), how[2], jnp.float32), f"pool{i}"
        variables = {"params": params["uper_head"][name]}
        variables["batch_stats"] = stats["uper_head"]["batch_stats"][name]
        apply = jax.jit(lambda v, x, pool=pool: pool.apply(v, x, False))
        ref.check(key.removeprefix("out/"), as_torch(apply(variables, x)))


@pytest.mark.parametrize("remat", [False, True])
def test_train(reference, remat):
    """Logits, losses both ways, gradients of the total and running statistics."""
    ref = reference("dense_upernet")
    net, (params, stats, given) = network(ref, remat=remat), loaded(ref)
    labels, weight = jnp.asarray(ref["in/labels"]), ref["hp/aux_weight"]

    def run(params):
        outputs, new = net.run(params, stats, given, PARTS, train=True)
        how = {"labels": labels, "ignore": ref["hp/ignore_index"]}
        losses = {}
        for over in ("valid", "all"):
            for key, name in (("", "logits"), ("aux_", "aux_logits")):
                found = segmentation_cross_entropy(outputs[name], over=over, **how)
                losses[f"{key}ce_mean_{over}"] = found
        total = losses["ce_mean_all"] + weight * losses["aux_ce_mean_all"]
        return total, (losses | {"loss_total_mean_all": total}, outputs, new)

    grads, (losses, outputs, new) = jax.jit(jax.grad(run, has_aux=True))(params)
    ref.check("logits_train", as_torch(outputs["logits"]))
    ref.check("aux_logits_train", as_torch(outputs["aux_logits"]))
    for name, value in losses.items():
        ref.check(name, value)
        exact = ref[f"out/{name}_f64"]
        assert np.abs(float(value) - exact) <= ref[f"tol/{name}"], name
    dense_names.check_all(ref, "grad", grads, {}, RULES)
    dense_names.check_all(ref, "updated", {}, new, RULES)
