"""Pyramids of maps, the heads of segmentation on them, and their loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.errors import UsageError
from mixjax.models import norms, pyramids, upernet
from mixjax.objectives.segmentation import segmentation_cross_entropy
from tests.models.test_vit_dense import DENSE, drawn, images

NORM = {"groups": 1, "interleaved": False, "momentum": 0.9, "eps": 1e-5}
NORM |= {"unbiased": True}
UPER = {"width": 4, "classes": 3, "dropout": 0.1, "scales": (1, 2, 3), "remat": False}
FCN = {"map": 2, "width": 4, "classes": 3, "dropout": 0.1}
ENCODER = DENSE | {"depth": 4, "taps": (0, 1, 2, 3), "class_token": True}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def segmenter(precision="float32", uper=None, **changes):
    c = {"precision": precision, "norm": NORM, "encoder": ENCODER, "neck": {}}
    c |= {"uper_head": UPER | (uper or {}), "fcn_head": FCN}
    return models.make(c | changes)


@pytest.mark.parametrize("i, j", [(0, 1), (1, 0)])
def test_deconvolution_is_not_flipped(i, j):
    """Entry [i, j] of the kernel is what comes out at row i and column j of four."""
    layer = pyramids.deconv(2, jnp.float32, "up")
    kernel = np.zeros((2, 2, 3, 2), "f4")
    kernel[i, j] = matrix = np.arange(6).reshape(3, 2)
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype("f4")
    params = {"kernel": kernel, "bias": np.array([10.0, 20.0], "f4")}
    found = np.asarray(layer.apply({"params": params}, x)) - [10.0, 20.0]
    np.testing.assert_allclose(found[:, i::2, j::2], x @ matrix, atol=1e-5)
    found[:, i::2, j::2] = 0
    assert not found.any()


def test_adaptive_bins_overlap():
    spans = lambda n, s: [
        (row.nonzero()[0][0], row.nonzero()[0][-1] + 1) for row in upernet.bins(n, s)
    ]
    assert spans(16, 3) == [(0, 6), (5, 11), (10, 16)]
    six = [(0, 3), (2, 6), (5, 8), (8, 11), (10, 14), (13, 16)]
    assert spans(16, 6) == six
    assert spans(2, 3) == [(0, 1), (0, 2), (1, 2)]
    for n, s in ((16, 6), (7, 3), (1, 2)):
        np.testing.assert_allclose(upernet.bins(n, s).sum(axis=1), 1.0)


def test_channels_are_dropped_whole_and_in_training_alone():
    head = upernet.Classes(32, 0.5, jnp.float32)
    x = np.ones((4, 3, 2, 32), "f4")
    params = {"proj": {"kernel": np.eye(32, dtype="f4"), "bias": np.zeros(32, "f4")}}
    np.testing.assert_array_equal(head.apply({"params": params}, x, False), x)
    rngs = {"dropout": jax.random.key(0)}
    found = np.asarray(head.apply({"params": params}, x, True, rngs=rngs))
    assert set(np.unique(found)) == {0.0, 2.0}
    assert (found == found[:, :1, :1]).all()  # one choice for all places
    assert (found[0, 0, 0] != found[1, 0, 0]).any()  # and another for each image


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_segmenter(precision):
    """Logits at four times the tokens' resolution, and an auxiliary map."""
    net = segmenter(precision)
    params, stats = jax.jit(net.init)(jax.random.key(0), images())
    how = {"train": True, "rng": jax.random.key(1)}
    step = jax.jit(lambda p, s, x: net.apply(p, s, x, **how))
    outputs, new = step(params, stats, images())
    assert [p.shape[1:3] for p in outputs["pyramid"]] == [
        (16, 16),
        (8, 8),
        (4, 4),
        (2, 2),
    ]
    assert outputs["logits"].shape == (2, 16, 16, 3)
    assert outputs["aux_logits"].shape == (2, 4, 4, 3)
    assert outputs["logits"].dtype == outputs["aux_logits"].dtype == jnp.float32
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, new)
    assert all(jax.tree.leaves(moved)) and set(new) == {"neck", "uper_head", "fcn_head"}


def test_remat_changes_neither_gradients_nor_statistics():
    params = drawn(segmenter())
    _, stats = jax.jit(segmenter().init)(jax.random.key(0), images())

    def step(remat):
        net = segmenter(uper={"remat": remat})

        def loss(p):
            how = {"train": True, "rng": jax.random.key(1)}
            outputs, new = net.apply(p, stats, images(), **how)
            return jnp.sum(outputs["logits"] ** 2), new

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    pairs = zip(*(jax.tree.leaves(step(remat)) for remat in (False, True)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1, np.abs(a).max()))


def test_auxiliary_head_reads_the_map_it_is_told():
    head = upernet.FCNHead(2, 4, 3, 0.0, norms.make_norm(**NORM), jnp.float32)
    maps = list(np.random.default_rng(0).normal(size=(4, 2, 3, 3, 5)).astype("f4"))
    variables = head.init(jax.random.key(0), {"maps": maps}, train=False)
    run = lambda maps: head.apply(variables, {"maps": maps}, train=False)["aux_logits"]
    changed = [[m + (i == j) for j, m in enumerate(maps)] for i in range(4)]
    same = [(run(maps) == run(other)).all() for other in changed]
    assert same == [True, True, False, True]
    with pytest.raises(UsageError, match="model.fcn_head.map=2: there are 2 maps"):
        run(maps[:2])


def test_simple_pyramid_of_odd_maps():
    part = pyramids.SimplePyramid(6, jnp.float32)
    x = np.random.default_rng(0).normal(size=(1, 6, 10, 8)).astype("f4")
    start = jax.jit(lambda key: part.init_with_output(key, {"map": x}, train=False))
    found, _ = start(jax.random.key(0))
    sizes = [p.shape[1:] for p in found["pyramid"]]
    assert sizes == [(24, 40, 6), (12, 20, 6), (6, 10, 6), (3, 5, 6), (2, 3, 6)]
    p5, p6 = found["pyramid"][3:]
    np.testing.assert_array_equal(p6, p5[:, ::2, ::2])


def test_feature_pyramid_adds_from_coarse_to_fine():
    """With projections that change nothing, a map is the sum of those above."""
    part = pyramids.FPN(3, jnp.float32)
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, n, n, 3)).astype("f4") for n in (8, 4, 2, 1)]
    params = part.init(jax.random.key(0), {"pyramid": maps}, train=False)["params"]
    for i in range(4):
        params[f"in{i}"]["kernel"] = np.eye(3, dtype="f4")[None, None]
        params[f"out{i}"]["kernel"] = np.zeros((3, 3, 3, 3), "f4")
        params[f"out{i}"]["kernel"][1, 1] = np.eye(3)
    found = part.apply({"params": params}, {"pyramid": maps}, train=False)["pyramid"]
    want = [maps[-1]]
    for x in maps[-2::-1]:
        want.insert(0, x + want[0].repeat(2, axis=1).repeat(2, axis=2))
    for a, b in zip(found, [*want, want[-1]], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_nearest_is_the_floor():
    x = np.arange(3.0, dtype="f4").reshape(1, 3, 1, 1)
    found = pyramids.nearest(x, (7, 1)).ravel()
    np.testing.assert_array_equal(found, [0, 0, 0, 1, 1, 2, 2])


# --- the loss ----------------------------------------------------------------------


def test_ignored_pixels_and_what_is_divided_by():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5)).astype("f4")
    labels = rng.integers(0, 5, (2, 6, 8)).astype("u1")
    labels[0, :2] = 255
    ce = jax.jit(
        lambda logits, labels, over: segmentation_cross_entropy(
            logits, labels, ignore=255, over=over
        ),
        static_argnums=2,
    )
    share = (labels != 255).mean()
    whole, valid = (float(ce(logits, labels, over)) for over in ("all", "valid"))
    assert whole == pytest.approx(valid * share, rel=1e-6) and share < 0.9
    twice = np.concatenate([logits] * 2), np.concatenate([labels] * 2)
    assert float(ce(*twice, "all")) == pytest.approx(whole, rel=1e-6)
    at_size = np.asarray(jax.image.resize(logits, (2, 6, 8, 5), "linear"))
    assert float(ce(at_size, labels, "all")) == pytest.approx(whole, rel=1e-6)
    none = np.full_like(labels, 255)
    value, gradient = jax.value_and_grad(lambda x: ce(x, none, "valid"))(logits)
    assert value == 0 and not gradient.any()
    with pytest.raises(UsageError, match="over 'valids' does not exist; did you mean"):
        ce(logits, labels, "valids")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"uper_head": UPER | {"scales": (0, 1)}}, r"uper_head.scales=\(0, 1\)"),
        ({"uper_head": UPER | {"dropout": 1.0}}, "uper_head.dropout=1.0 must be"),
        ({"fcn_head": FCN | {"classes": 0}}, "fcn_head.classes=0 must be"),
        ({"encoder": ENCODER | {"taps": (3,)}}, "neck is for four maps"),
    ],
)
def test_what_does_not_fit_is_said(changes, message):
    with pytest.raises(UsageError, match=message):
        segmenter(**changes).init(jax.random.key(0), images())
