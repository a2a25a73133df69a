"""Rates and decay of a dense network's parameters, one by one."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import common
from mixjax import models, optim
from mixjax.schedules import Rate
from mixjax.state import Clock

DEPTH = 12
VIT = dict(name="vit_dense", image_size=(64, 64), channels=3, patch=16, width=8)
VIT |= dict(depth=DEPTH, heads=2, mlp_ratio=2.0, drop_path=0.1, class_token=False)
VIT |= dict(pretrained_grid=(2, 2), relative="decomposed", window=2, taps=(11,))
VIT |= dict(global_blocks=(2, 5, 8, 11), layer_scale=False, remat="none")
BOX = dict(convs=1, width=8, fcs=1, fc_width=8, classes=3, agnostic=False)
VITDET = {
    "encoder": VIT,
    "simple_pyramid": {"width": 8},
    "rpn_head": dict(convs=2, width=8, anchors=3),
    "box_head": BOX | {"norm_kind": "layer"},
    "mask_head": dict(convs=1, width=8, classes=3, norm_kind="layer"),
}
# What detectron2's recipe leaves undecayed: torch's norms, of which only blocks have
# any, and positions. Its own norm, of pyramid and heads, it does not know as one.
EXEMPT = (r"^encoder/blocks_\d+/norm\d/", "^encoder/pos_embed$")
BATCH_NORMS = (r"/(bn\d?|downsample_bn|norm\d?)/(scale|bias)$",)


def shapes(sections, **inputs):
    """{part: shapes of its parameters} of a network."""
    network = models.make({"precision": "float32", **sections})
    size = (1, *network.geometry.image_size, 3)
    image = jax.ShapeDtypeStruct(size, jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image, **inputs)[0]


def crops(side, width):
    shape = jax.ShapeDtypeStruct((2, side, side, width), jnp.float32)
    return {"regions": shape}


@pytest.fixture(scope="module")
def vitdet():
    return shapes(VITDET, box_head=crops(7, 8), mask_head=crops(14, 8))


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf for path, leaf in leaves}


def test_rates_fall_through_the_encoder_alone(vitdet):
    scales = named(optim.layer_scales(vitdet, 0.7, (DEPTH,)))
    assert scales["encoder/pos_embed"] == pytest.approx(0.7**13)
    assert round(scales["encoder/pos_embed"], 5) == 0.00969
    for name, scale in scales.items():
        block = re.match(r"encoder/blocks_(\d+)/", name)
        number = int(block[1]) + 1 if block else 0
        number = number if name.startswith("encoder/") else DEPTH + 1
        assert scale == pytest.approx(0.7 ** (DEPTH + 1 - number)), name
    last = [v for k, v in scales.items() if k.startswith("encoder/blocks_11/")]
    assert len(last) == 14 and set(last) == {0.7}  # tables of positions among them
    assert scales["encoder/blocks_0/attn/rel_pos_h"] == pytest.approx(0.7**12)
    on_top = {k.split("/")[0] for k, v in scales.items() if v == 1}
    assert on_top == VITDET.keys() - {"encoder"}


def test_class_token_and_neck_of_a_segmentation():
    """The neck is on top although it works on the encoder's maps."""
    encoder = VIT | dict(class_token=True, relative="bias", window=0, layer_scale=True)
    encoder |= dict(taps=(3, 5, 7, 11), global_blocks=())
    norm = dict(groups=1, interleaved=False, momentum=0.9, eps=1e-5, unbiased=True)
    tree = shapes({"encoder": encoder, "norm": norm, "neck": {}})
    scales = named(optim.layer_scales(tree, 0.65, (DEPTH,)))
    assert scales["encoder/cls_token"] == pytest.approx(0.65**13)
    assert scales["encoder/patch_embed/proj/kernel"] == pytest.approx(0.65**13)
    inside = {k: v for k, v in scales.items() if k.startswith("encoder/blocks_4/")}
    assert "encoder/blocks_4/attn/relative_bias" in inside
    assert "encoder/blocks_4/gamma_1" in inside
    assert all(scale == pytest.approx(0.65**8) for scale in inside.values())
    assert {v for k, v in scales.items() if k.startswith("neck/")} == {1}


def test_all_decays_but_the_blocks_norms_and_positions(vitdet):
    mask = named(optim.decay_mask(vitdet, True, EXEMPT))
    free = {name for name, decays in mask.items() if not decays}
    norms = {
        f"encoder/blocks_{i}/norm{j}/{leaf}"
        for i in range(DEPTH)
        for j in (1, 2)
        for leaf in ("scale", "bias")
    }
    assert free == norms | {"encoder/pos_embed"}
    for name in (
        "encoder/blocks_2/attn/rel_pos_w",
        "encoder/blocks_2/attn/qkv/bias",
        "encoder/patch_embed/proj/bias",
        "simple_pyramid/p2_norm/scale",
        "box_head/convs/norm1/bias",
        "mask_head/convs/norm1/scale",
        "rpn_head/conv1/bias",
    ):
        assert mask[name], name


def test_the_table_that_a_run_prints(vitdet, said):
    """Every parameter in one group, by rate and decay, slowest first."""
    c = common.adamw(0.999, 0.1)
    c.layer_decay, c.layers = 0.7, (DEPTH,)
    c.decay_vectors, c.decay_exempt = True, EXEMPT
    clock, rate = Clock(10, 1.0), Rate(lambda step: 1e-4, 1e-4)
    optim.make(c, rate, vitdet, clock=clock)
    rows = [line.split() for line in said[1:]]
    found = {(row[0], row[1]): row[4] for row in rows}
    assert rows[0][:3] == ["0.009689", "0", "1"] and rows[0][4] == "encoder/pos_embed"
    assert rows[1][:2] == ["0.009689", "0.1"] and "patch_embed" in rows[1][4]
    assert "blocks_11/norm" in found["0.7", "0"]
    assert ("1", "0") not in found and ("1", "0.1") in found
    assert len(rows) == 2 * 13 + 1
    assert sum(int(row[2]) for row in rows) == len(jax.tree.leaves(vitdet))


def test_a_residual_detector_decays_all_but_its_norms():
    """Detectron2 decays biases of heads; no norm, the one behind the blocks neither."""
    encoder = dict(name="resnet", image_size=(64, 64), channels=3, block="bottleneck")
    encoder |= dict(layers=(1, 1, 1), widths=(2, 2, 2), stem="imagenet", stem_width=2)
    encoder |= dict(stem_init="kaiming", zero_init=False, remat="none")
    last = dict(block="bottleneck", layers=1, width=2, extra_norm=True, remat="none")
    none = dict(convs=0, width=0, fcs=0, fc_width=0, norm_kind="none")
    tree = shapes(
        {
            "encoder": encoder,
            "norm": dict(common.norm(1)),
            "rpn_head": dict(convs=1, width=2, anchors=15),
            "res5": last,
            "box_head": BOX | none,
        },
        res5=crops(14, 8) | {"valid": jax.ShapeDtypeStruct((2,), bool)},
        box_head=crops(7, 8),
    )
    mask = named(optim.decay_mask(tree, True, BATCH_NORMS))
    for name, decays in mask.items():
        assert decays == (not re.search(r"bn\d?/|/norm/", name)), name
    assert not mask["res5/norm/scale"] and not mask["res5/layer4_0/bn3/bias"]
    assert mask["rpn_head/conv1/bias"] and mask["box_head/deltas/bias"]
