"""Heads of detectors: in which order they predict, how they start, what they see."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.errors import UsageError
from mixjax.models import norms
from mixjax.models.detection_heads import BoxHead, MaskHead, RPNHead

NORM = norms.make_norm(
    groups=1, interleaved=False, momentum=0.9, eps=1e-5, unbiased=True
)
BATCH_NORM = {"norm": NORM, "dtype": jnp.float32}
RPN = {"convs": 1, "width": 7, "anchors": 3, "dtype": jnp.float32}
BOX = {"convs": 1, "width": 6, "fcs": 1, "fc_width": 16, "classes": 5}
BOX |= {"agnostic": False, "norm_kind": "layer"} | BATCH_NORM
MASK = {"convs": 1, "width": 6, "classes": 5, "norm_kind": "layer"} | BATCH_NORM
C4 = BOX | {"convs": 0, "width": 0, "fcs": 0, "fc_width": 0, "norm_kind": "none"}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "f4")


def redrawn(variables):
    """The same tree of numbers of which none is 0 or 1."""
    leaves, tree = jax.tree.flatten(variables)
    leaves = [draw(*x.shape, seed=i) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves)


def run(part, outputs, train=False, **inputs):
    """(outputs, parameters) of a part whose parameters are all drawn anew."""
    init = functools.partial(part.init, train=False)
    variables = init(jax.random.key(0), outputs, **inputs)
    stats = {k: v for k, v in variables.items() if k != "params"}
    params = redrawn(variables["params"])
    how = {"train": train, "mutable": ["batch_stats"]}
    apply = jax.jit(functools.partial(part.apply, **how))
    found, new = apply({"params": params, **stats}, outputs, **inputs)
    return found, params, new


def conv3(x, kernel, bias):
    """A 3x3 convolution [B, h, w, C] by shifts, zeros at the rim."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1] - 2, x.shape[2] - 2
    parts = [
        x[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)
    ]
    return sum(parts) + bias


def layer_normed(x, scale, bias):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6) * scale + bias


def numbers(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def close(found, want):
    assert found.dtype == jnp.float32 and found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


# --- proposals ---------------------------------------------------------------------


@pytest.mark.parametrize("convs", [0, 2])
def test_proposals_come_by_row_column_and_anchor(convs):
    maps = draw(2, 4, 5, 7), draw(2, 2, 3, 7, seed=1)
    part = RPNHead(**RPN | {"convs": convs})
    found, params, _ = run(part, {"pyramid": maps, "map": maps[0]})
    params = numbers(params)
    assert len(found["rpn_logits"]) == len(found["rpn_deltas"]) == 2
    for i, x in enumerate(maps):
        for j in range(convs):
            x = np.maximum(conv3(x, **params[f"conv{j + 1}"]), 0)
        b, h, w, _ = x.shape
        logits, deltas = (
            x @ params[k]["kernel"][0, 0] + params[k]["bias"]
            for k in ("logits", "deltas")
        )
        want = np.empty((b, h * w * 3)), np.empty((b, h * w * 3, 4))
        for row in range(h):
            for column in range(w):
                for a in range(3):
                    n = (row * w + column) * 3 + a
                    want[0][:, n] = logits[:, row, column, a]
                    want[1][:, n] = deltas[:, row, column, 4 * a : 4 * a + 4]
        close(found["rpn_logits"][i], want[0])
        close(found["rpn_deltas"][i], want[1])


def test_the_map_alone_where_there_is_no_pyramid():
    x = draw(2, 4, 5, 7)
    one, _, _ = run(RPNHead(**RPN), {"map": x})
    same, _, _ = run(RPNHead(**RPN), {"pyramid": (x,)})
    for name in ("rpn_logits", "rpn_deltas"):
        (alone,), (level,) = one[name], same[name]
        np.testing.assert_array_equal(alone, level)


# --- boxes -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "layer"])
@pytest.mark.parametrize("agnostic", [True, False])
def test_boxes_of_regions(kind, agnostic):
    """Two convolutions and two linear layers, on (row, column, channel)."""
    part = BoxHead(
        **BOX | {"convs": 2, "fcs": 2, "norm_kind": kind, "agnostic": agnostic}
    )
    x = draw(3, 2, 4, 7)
    found, params, _ = run(part, {}, regions=x)
    params, y = numbers(params), np.asarray(x, np.float64)
    for i in (1, 2):
        layers = params["convs"]
        y = conv3(y, layers[f"conv{i}"]["kernel"], layers[f"conv{i}"].get("bias", 0))
        assert ("bias" in layers[f"conv{i}"]) == (kind == "none")
        y = layer_normed(y, **layers[f"norm{i}"]) if kind == "layer" else y
        y = np.maximum(y, 0)
    y = np.stack([y[:, i, j] for i in range(2) for j in range(4)], axis=1)
    y = y.reshape(3, -1)
    for i in (1, 2):
        y = np.maximum(y @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"], 0)
    for ours, name in (("class_logits", "logits"), ("box_deltas", "deltas")):
        close(found[ours], y @ params[name]["kernel"] + params[name]["bias"])
    assert found["class_logits"].shape == (3, 6)
    assert found["box_deltas"].shape == (3, 4 if agnostic else 20)


def test_without_layers_a_region_is_the_mean_of_its_places():
    x = draw(3, 7, 7, 8)
    found, params, _ = run(BoxHead(**C4), {}, regions=x)
    assert params.keys() == {"logits", "deltas"}
    mean = np.asarray(x, np.float64).mean(axis=(1, 2))
    layer = numbers(params["logits"])
    close(found["class_logits"], mean @ layer["kernel"] + layer["bias"])


@pytest.mark.parametrize("make", [BoxHead, MaskHead])
def test_rows_without_a_region_are_in_no_batch_statistic(make):
    part = make(**(BOX if make is BoxHead else MASK) | {"norm_kind": "batch"})
    x, valid = draw(6, 4, 4, 7), jnp.asarray([1, 0, 1, 1, 0, 1], bool)
    found, _, new = run(part, {}, train=True, regions=x, valid=valid)
    want, params, same = run(part, {}, train=True, regions=x[valid])
    assert "bias" not in params["convs"]["conv1"]
    for name in want:
        np.testing.assert_allclose(found[name][valid], want[name], rtol=1e-3, atol=1e-3)
    new, same = (tree["batch_stats"]["convs"]["norm1"] for tree in (new, same))
    for name in ("mean", "var"):
        np.testing.assert_allclose(new[name], same[name], rtol=1e-5, atol=1e-6)


# --- masks -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "layer"])
def test_masks_of_regions(kind):
    part = MaskHead(**MASK | {"norm_kind": kind})
    x = draw(3, 2, 3, 7)
    found, params, _ = run(part, {}, regions=x)
    params = numbers(params)
    layers = params["convs"]
    y = conv3(x, layers["conv1"]["kernel"], layers["conv1"].get("bias", 0))
    y = layer_normed(y, **layers["norm1"]) if kind == "layer" else y
    y, up = np.maximum(y, 0), np.empty((3, 4, 6, 6))
    for i in (0, 1):
        for j in (0, 1):
            up[:, i::2, j::2] = y @ params["deconv"]["kernel"][i, j]
    y = np.maximum(up + params["deconv"]["bias"], 0)
    last = params["logits"]
    close(found["mask_logits"], y @ last["kernel"][0, 0] + last["bias"])


def test_masks_without_convolutions_are_of_twice_the_side():
    part = MaskHead(**MASK | {"convs": 0, "norm_kind": "none"})
    found, params, _ = run(part, {}, regions=draw(2, 7, 7, 9))
    assert found["mask_logits"].shape == (2, 14, 14, 5)
    assert params.keys() == {"deconv", "logits"}
    assert params["deconv"]["kernel"].shape == (2, 2, 9, 6)


# --- sizes and starts --------------------------------------------------------------

VITDET = {  # part, its input, millions of parameters of ViTDet with 80 classes
    "rpn_head": (RPNHead(2, 256, 3, jnp.float32), 1.18 + 0.0039),
    "box_head": (BoxHead(4, 256, 1, 1024, 80, False, "layer", **BATCH_NORM), 15.63),
    "mask_head": (MaskHead(4, 256, 80, "layer", **BATCH_NORM), 2.645),
}


@pytest.mark.parametrize("name", VITDET)
def test_as_many_parameters_as_vitdet(name):
    part, millions = VITDET[name]
    side = {"box_head": 7, "mask_head": 14}.get(name)
    given = (
        {"regions": jax.ShapeDtypeStruct((2, side, side, 256), "f4")} if side else {}
    )
    outputs = {} if side else {"map": jax.ShapeDtypeStruct((1, 8, 8, 256), "f4")}
    init = functools.partial(part.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), outputs, **given)["params"]
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, rel=2e-3)


def started(part, outputs, **given):
    params = part.init(jax.random.key(0), outputs, train=False, **given)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {"/".join(k.key for k in path): np.asarray(x) for path, x in leaves}
    biases = [v for k, v in named.items() if k.endswith("bias")]
    assert biases and not any(b.any() for b in biases)
    return named


def test_proposals_start_narrow():
    part = RPNHead(**RPN | {"convs": 1, "width": 64, "anchors": 30})
    named = started(part, {"map": draw(1, 3, 3, 32)})
    for name in ("conv1", "logits", "deltas"):
        assert named[f"{name}/kernel"].std() == pytest.approx(0.01, rel=0.05)


def test_boxes_start_as_caffe2_fills():
    wide = {"width": 64, "fc_width": 128, "classes": 80}
    named = started(BoxHead(**BOX | wide), {}, regions=draw(2, 3, 3, 32))
    stds = {"convs/conv1": math.sqrt(2 / (9 * 64)), "logits": 0.01, "deltas": 0.001}
    for name, std in stds.items():
        assert named[f"{name}/kernel"].std() == pytest.approx(std, rel=0.05)
    fc, bound = named["fc1/kernel"], math.sqrt(3 / (9 * 64))
    assert 0.99 * bound < np.abs(fc).max() <= bound
    assert fc.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_masks_start_as_caffe2_fills():
    part = MaskHead(**MASK | {"convs": 0, "width": 48, "classes": 80})
    named = started(part, {}, regions=draw(2, 3, 3, 96))
    # Of 96 channels to 48, of which torch counts the first: (in, out, row, column).
    want = math.sqrt(2 / (4 * 96))
    assert named["deconv/kernel"].std() == pytest.approx(want, rel=0.02)
    assert named["logits/kernel"].std() == pytest.approx(0.001, rel=0.05)


# --- in a network ------------------------------------------------------------------

ENCODER = dict(name="resnet", image_size=(32, 48), channels=3, block="bottleneck")
ENCODER |= dict(layers=(1, 1, 1), widths=(2, 2, 3), stem="imagenet", stem_width=4)
ENCODER |= dict(stem_init="kaiming", zero_init=False, remat="none")
SECTIONS = {
    "encoder": ENCODER,
    "norm": dict(groups=1, interleaved=False, momentum=0.9, eps=1e-5, unbiased=True),
    "mask_head": {k: v for k, v in MASK.items() if k not in BATCH_NORM} | {"convs": 0},
    "box_head": {k: v for k, v in C4.items() if k not in BATCH_NORM},
    "rpn_head": {k: v for k, v in RPN.items() if k != "dtype"},
    "res5": dict(block="bottleneck", layers=1, width=4, extra_norm=True, remat="none"),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_detector_of_form_c4(precision):
    net = models.make({"precision": precision, **SECTIONS})
    assert net.parts == ("encoder", "rpn_head", "res5", "box_head", "mask_head")
    images, hw = draw(2, 32, 48, 3), jnp.asarray([[32.0, 48.0], [20.0, 33.0]])
    crops = {"regions": draw(6, 4, 4, 12), "valid": jnp.arange(6) < 5}
    heads = {"regions": draw(6, 2, 2, 16)}
    inputs = {"res5": crops, "box_head": heads, "mask_head": heads}
    shapes = jax.eval_shape(net.init, jax.random.key(0), images, **inputs)
    params, stats = (redrawn(tree) for tree in shapes)
    stats = jax.tree.map(jnp.abs, stats)

    @jax.jit
    def forward(params, stats):
        seen = {"images": images}
        how = {"train": True, "encoder": {"hw": hw}}
        seen, stats = net.run(params, stats, seen, ("encoder", "rpn_head"), **how)
        one = {"train": True, "res5": crops}
        seen, stats = net.run(params, stats, seen, ("res5",), **one)
        given = {k: {"regions": seen["regions"]} for k in ("box_head", "mask_head")}
        return net.run(params, stats, seen, tuple(given), train=True, **given)

    found, new = forward(params, stats)
    assert found["rpn_logits"][0].shape == (2, 2 * 3 * 3)
    assert found["regions"].shape == (6, 2, 2, 16)
    assert found["mask_logits"].shape == (6, 4, 4, 5)
    predicted = ("rpn_logits", "rpn_deltas", "class_logits", "box_deltas")
    for leaf in jax.tree.leaves([found[k] for k in (*predicted, "mask_logits")]):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, new)
    assert all(jax.tree.leaves(moved)) and moved.keys() == {"encoder", "res5"}


@pytest.mark.parametrize(
    "make, fields, message",
    [
        (
            RPNHead,
            RPN | {"anchors": 0},
            r"model\.rpn_head\.anchors=0 must be at least 1\.",
        ),
        (BoxHead, BOX | {"norm_kind": "lay"}, r"model\.box_head\.norm_kind .*'layer'"),
        (BoxHead, BOX | {"width": 0}, r"model\.box_head\.width=0 must be at least 1\."),
        (
            BoxHead,
            BOX | {"fc_width": 0},
            r"model\.box_head\.fc_width=0 must be at least 1\.",
        ),
        (
            BoxHead,
            BOX | {"convs": -1},
            r"model\.box_head\.convs=-1 must be at least 0\.",
        ),
        (MaskHead, MASK | {"norm_kind": "bn"}, r"model\.mask_head\.norm_kind 'bn'"),
        (
            MaskHead,
            MASK | {"classes": 0},
            r"model\.mask_head\.classes=0 must be at least 1\.",
        ),
    ],
)
def test_fields_that_make_no_sense(make, fields, message):
    with pytest.raises(UsageError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("block", "basics", r"model\.res5\.block 'basics' .*'basic'"),
        ("remat", "all", r"model\.res5\.remat 'all'"),
        ("layers", 0, r"model\.res5\.layers=0 must be at least 1\."),
    ],
)
def test_fields_of_res5(field, value, message):
    with pytest.raises(UsageError, match=message):
        models.make(
            {"precision": "float32", **SECTIONS}
            | {"res5": SECTIONS["res5"] | {field: value}}
        )
