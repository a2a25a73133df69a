"""Swin against timm, and SimMIM's parameter groups against the official code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.optim import optimizers
from tests.parity import backbones
from tests.parity.torch_names import at, backbone_path, images, swin_tree


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_swin_forward(reference, remat):
    ref = reference("swin_forward")
    config = {
        "precision": "float32",
        "encoder": backbones.swin(ref, "in/x", remat=remat),
        "classifier": {
            "classes": ref["hp/num_classes"],
            "init_std": 0.02,
            "feature_norm": False,
        },
    }
    network = models.make(config)
    params = swin_tree(ref.part("params"), merge_first=True)
    params = jax.tree.map(jnp.asarray, params)
    batch = images(ref["in/x"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), batch)
    chex.assert_trees_all_equal_shapes(shapes[0], params)
    run = jax.jit(lambda p, x: network.apply(p, {}, x, train=True)[0])
    outputs = run(params, batch)
    grid = network.geometry.grid
    ref.check("patch_embed", outputs["embedding"].reshape(len(batch), *grid, -1))
    stages = ref.part("out")
    assert len(outputs["stages"]) == sum(k.startswith("stage") for k in stages)
    for i, stage in enumerate(outputs["stages"]):
        ref.check(f"stage{i}", stage)
    ref.check("feature_map", outputs["map"])
    ref.check("features", outputs["features"])
    ref.check("logits", outputs["logits"])


TINY = {"image_size": (32, 32), "channels": 3, "mlp_ratio": 2.0, "drop_path": 0.0}
TINY |= {"remat": "none", "patch": 4}
CASES = {  # which parameters are exempt; rules as a recipe has them
    "swin_pretrain": ("mask_token",),
    "swin_finetune": ("relative_bias",),
    "vit_pretrain": ("cls_token",),
    "vit_finetune": ("cls_token",),
}


def parameters(ref, case):
    """The shapes of our network for one list of the file, and its depths."""
    kind, phase = case.split("_")
    encoder = TINY | {"name": "swin", "mask_token": phase == "pretrain"}
    if kind == "swin":
        depths = tuple(ref["hp/depths"].tolist())
        encoder |= {"depths": depths, "heads": (1,) * len(depths), "width": 4}
        encoder |= {"window": 2, "image_size": (2 ** (len(depths) + 2),) * 2}
    else:
        depths = ref["hp/vit_depth"]
        encoder |= {"name": "beit", "depth": depths, "heads": 1, "width": 4}
        pool, relative = "mean", "shared"
        if phase == "finetune":
            pool, relative = "mean_norm", "each"
        encoder |= {"layer_scale": 0.1, "pool": pool, "relative": relative}
        encoder |= {"scan": False}
    config = {"precision": "float32", "encoder": encoder}
    if phase == "pretrain":
        config["pixel_head"] = {}
    else:
        config["classifier"] = {"classes": 3, "init_std": 0.02, "feature_norm": False}
    batch = jax.ShapeDtypeStruct((1, *encoder["image_size"], 3), jnp.float32)
    init = models.make(config).init
    return jax.eval_shape(init, jax.random.key(0), batch)[0], depths


@pytest.mark.parametrize("case", CASES)
def test_parameter_groups(reference, case):
    """Weight decay and rate of every parameter.

    SimMIM's list of keywords never matches in pre-training: the tables of Swin are
    decayed there, and only there.
    """
    ref = reference("simmim_param_groups")
    shapes, depths = parameters(ref, case)
    listed = [str(n) for n in ref[f"out/{case}/names"]]
    # The file's ViT has absolute positions too; ours has none.
    ours = np.array(["pos_embed" not in n for n in listed])
    names = [n for n, own in zip(listed, ours, strict=True) if own]
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    paths = {"/".join(k.key for k in path) for path, _ in paths}
    assert paths == {backbone_path(n) for n in names}
    mask = optimizers.decay_mask(shapes, False, CASES[case])
    decay = [ref["hp/weight_decay"] * at(mask, n, backbone_path) for n in names]
    expected = ref[f"out/{case}/weight_decay"][ours]
    ref.check(f"{case}/weight_decay", decay, expected)
    factor = 1.0 if "pretrain" in case else ref["hp/layer_decay"]
    scales = optimizers.layer_scales(shapes, factor, depths)
    rates = [ref["hp/base_lr"] * at(scales, n, backbone_path) for n in names]
    ref.check(f"{case}/lr", rates, ref[f"out/{case}/lr"][ours])
