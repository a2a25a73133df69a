"""The transformer of dense tasks: positions, windows, maps, and weights for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.errors import UsageError
from mixjax.models import adapt_weights, map_attention, positions
from mixjax.models.attention import attend
from tests.models.test_adapt_weights import BEIT, VIT, by_path

DENSE = {"name": "vit_dense", "image_size": (16, 16), "channels": 1, "patch": 4}
DENSE |= {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "drop_path": 0.0}
DENSE |= {"class_token": False, "pretrained_grid": (4, 4), "relative": "none"}
DENSE |= {"window": 0, "global_blocks": (), "layer_scale": False, "taps": (0, 1)}
DENSE |= {"remat": "none"}
VIT = VIT | {"depth": 2}
WINDOWS = {"relative": "decomposed", "window": 3, "global_blocks": (1,)}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def network(encoder, precision="float32"):
    return models.make({"precision": precision, "encoder": encoder})


def images(size=(16, 16), count=2, seed=0):
    shape = (count, *size, 1)
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def drawn(net, seed=1):
    """Parameters of which none is what it starts from; scales are around 1."""
    x = jax.ShapeDtypeStruct((1, *net.geometry.image_size, 1), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)[0]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = path[-1].key in ("scale", "gamma_1", "gamma_2")
        return jnp.asarray(around + 0.5 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def encode(net, params, x):
    return jax.jit(lambda params, x: net.encode(params, {}, x))(params, x)


def kernel(x, a):
    """The cubic convolution kernel."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def cubic(old, new, a):
    """[new, old]: bicubic along one axis, the outermost values going on."""
    matrix = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[i, np.clip(j, 0, old - 1)] += kernel(at - j, a)
    return matrix


@pytest.mark.parametrize("class_token", [False, True])
def test_the_table_is_resampled_with_torchs_coefficient(class_token):
    """And the row of the class token goes to no patch."""
    c = {"depth": 0, "taps": (), "pretrained_grid": (6, 5), "class_token": class_token}
    net = network(DENSE | c)
    params, x = drawn(net), images()
    table = params["encoder"]["pos_embed"][0]
    bare = jax.tree.map(lambda y: y, params)
    bare["encoder"]["pos_embed"] = jnp.zeros((1, 31, 8))
    added = encode(net, params, x)["map"] - encode(net, bare, x)["map"]
    both = {}
    for a in (-0.75, -0.5):
        matrices = cubic(6, 4, a), cubic(5, 4, a)
        both[a] = np.einsum(
            "ih,jw,hwc->ijc", *matrices, table[1:].reshape(6, 5, 8), optimize=True
        )
    np.testing.assert_allclose(added, np.stack([both[-0.75]] * 2), atol=1e-5)
    assert np.abs(added - both[-0.5]).max() > 0.01


def explicit(attn, x, size, heads, masked=False):
    """Attention in one window [L, D] with a bias of [heads, L, L], written out.

    size: rows and columns of it that are no padding.
    """
    side = int(len(x) ** 0.5)
    rows, columns = np.divmod(np.arange(len(x)), side)
    qkv = x @ attn["qkv"]["kernel"] + attn["qkv"]["bias"]
    q, k, v = np.split(qkv.reshape(len(x), 3 * heads, -1).swapaxes(0, 1), 3)
    bias = 0.0
    for table, at in ((attn["rel_pos_h"], rows), (attn["rel_pos_w"], columns)):
        offsets = table[at[:, None] - at[None] + side - 1]  # [L, L, d]
        bias = bias + np.einsum("hqd,qkd->hqk", q, offsets)
    logits = q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5 + bias
    if masked:
        outside = (rows >= size[0]) | (columns >= size[1])
        logits = np.where(outside[None, None], -np.inf, logits)
    weights = jax.nn.softmax(logits, axis=-1)
    mixed = np.einsum("hqk,hkd->qhd", weights, v).reshape(len(x), -1)
    return mixed @ attn["proj"]["kernel"] + attn["proj"]["bias"]


def test_padding_of_windows_comes_after_the_norm_and_is_seen():
    """A map of 4 x 4 in windows of 3: three of the four are partly padding."""
    module = map_attention.Attention(2, 3, "decomposed", (3, 3), False, jnp.float32)
    x = np.random.default_rng(0).normal(size=(2, 16, 8)).astype("f4")
    start = module.init(jax.random.key(0), x, (4, 4))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda y: y + rng.normal(size=y.shape), start["params"])
    apply = jax.jit(lambda p, x: module.apply({"params": p}, x, (4, 4)))
    found = np.asarray(apply(params, x))
    far = 0.0
    for image, got in zip(
        x.reshape(2, 4, 4, 8), found.reshape(2, 4, 4, 8), strict=True
    ):
        whole = np.pad(image, ((0, 2), (0, 2), (0, 0)))
        for i, j in np.ndindex(2, 2):
            place = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
            size = got[place].shape[:2]
            part = whole[place].reshape(9, 8)
            inside = np.s_[: size[0], : size[1]]
            want = explicit(params, part, size, 2).reshape(3, 3, 8)[inside]
            np.testing.assert_allclose(got[place], want, atol=2e-4, rtol=1e-5)
            other = explicit(params, part, size, 2, masked=True)
            far = max(far, np.abs(other.reshape(3, 3, 8)[inside] - want).max())
    assert far > 0.1


@pytest.mark.parametrize("size, tables", [((3, 5), (3, 5)), ((4, 2), (3, 3))])
def test_folded_positions_are_a_bias(size, tables):
    """Of the query as it is, not divided by the root of its length."""
    rng = np.random.default_rng(0)
    length = size[0] * size[1]
    query, key, value = rng.normal(size=(3, 2, 2, length, 4)).astype("f4")
    tables = [rng.normal(size=(2 * n - 1, 4)).astype("f4") for n in tables]
    at = np.divmod(np.arange(length), size[1])
    bias = 0.0
    for table, place, n in zip(tables, at, size, strict=True):
        like = (2 * n - 1, 4)
        table = np.asarray(jax.image.resize(table, like, "linear", antialias=False))
        offsets = table[place[:, None] - place[None] + n - 1]  # [L, L, d]
        bias = bias + np.einsum("bhqd,qkd->bhqk", query, offsets)
    want = attend(query, key, value, bias=bias)[0]
    long = map_attention.folded(jnp.asarray(query), key, tuple(tables), size)
    found = attend(*long, value)[0]
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("relative", ["none", "decomposed", "bias"])
def test_gradients_do_not_depend_on_remat(relative):
    c = DENSE | {"relative": relative, "layer_scale": True, "drop_path": 0.3}
    c |= WINDOWS if relative == "decomposed" else {"class_token": True}
    x, params = images(count=4), drawn(network(c))

    def gradients(remat):
        net = network(c | {"remat": remat})

        def loss(params):
            how = {"train": True, "rng": jax.random.key(0)}
            outputs, _ = net.apply(params, {}, x, **how)
            return sum(jnp.sum(m**3) for m in outputs["maps"])

        return jax.jit(jax.grad(loss))(params)

    plain = gradients("none")
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(plain))
    for remat in ("block", "dots"):
        for a, b in zip(*map(jax.tree.leaves, (plain, gradients(remat))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


@pytest.mark.parametrize("more", [WINDOWS, {"class_token": True}])
def test_other_sizes(more):
    net = network(DENSE | more)
    assert net.geometry.any_size
    outputs = encode(net, drawn(net), images((20, 8)))
    assert [m.shape for m in outputs["maps"]] == [(2, 5, 2, 8)] * 2
    assert not network(DENSE | {"relative": "bias"}).geometry.any_size
    with pytest.raises(UsageError, match="18 is not a multiple"):
        net.encode(drawn(net), {}, images((18, 8)))


def test_a_table_of_bias_tells_offsets_apart():
    """Beit's table of each block, with and without the class token's three rows."""
    for token, rows in ((True, 52), (False, 49)):
        net = network(DENSE | {"relative": "bias", "class_token": token})
        params = drawn(net)
        table = params["encoder"]["blocks_1"]["attn"]["relative_bias"]
        assert table.shape == (rows, 2)
        spread = lambda p, net=net: net.encode(p, {}, images())["map"].std()
        found = jax.jit(jax.grad(spread))(params)["encoder"]["blocks_1"]["attn"][
            "relative_bias"
        ]
        used = np.abs(found).max(axis=1) > 0
        assert used[:49].all() and used.sum() >= rows - 2


def test_stochastic_depth_skips_both_branches_in_training_alone():
    net = network(DENSE | {"drop_path": 0.5})
    params, x = drawn(net), images(count=32)
    first, last = encode(net, params, x)["maps"]
    assert (np.abs(last - first).max(axis=(1, 2, 3)) > 0.01).all()
    how = {"train": True, "rng": jax.random.key(0)}
    train = jax.jit(lambda params, x: net.apply(params, {}, x, **how)[0]["maps"])
    first, last = train(params, x)
    skipped = (last == first).all(axis=(1, 2, 3))
    assert 0 < skipped.sum() < 24


def test_half_precision_hands_over_float32():
    c = DENSE | WINDOWS
    x = images()
    params = drawn(network(c))
    whole, half = (network(c, p).encode(params, {}, x) for p in ("float32", "bfloat16"))
    assert half["map"].dtype == half["features"].dtype == jnp.float32
    scale = np.abs(whole["map"]).max()
    assert 0 < np.abs(half["map"] - whole["map"]).max() < 0.05 * scale


# --- weights of a pre-training ---------------------------------------------------


def moved(old, new):
    """(parameters of the old, of the new, what the new took, what starts afresh)."""
    params = drawn(network(old))
    x = images(new["image_size"])
    wanted = jax.jit(network(new).init)(jax.random.key(2), x)[0]
    found = {k: np.asarray(v) for k, v in by_path(params["encoder"]).items()}
    given, fresh = adapt_weights.adapt_part(
        "encoder", found, by_path(wanted["encoder"]), {"encoder": old}, {"encoder": new}
    )
    there = {k: v.shape for k, v in by_path(wanted["encoder"]).items()}
    assert {k: v.shape for k, v in given.items()} == {
        k: v for k, v in there.items() if k not in fresh
    }
    path = lambda p: "/".join(k.key for k in p)
    pick = lambda p, x: jnp.asarray(given.get(path(p), x))
    whole = jax.tree_util.tree_map_with_path(pick, wanted["encoder"])
    return params, {"encoder": whole}, given, fresh


@pytest.mark.parametrize("position", ["sincos", "learned"])
@pytest.mark.parametrize("pool", ["class", "mean_norm"])
def test_maps_are_what_a_pretrained_network_has_inside(position, pool):
    old, new = VIT | {"position": position, "pool": pool}, DENSE | {"class_token": True}
    params, ours, _, fresh = moved(old, new)
    x, maps = images(), network(new).encode(ours, {}, images())["maps"]
    assert not fresh
    for layer, found in enumerate(maps):
        seen = network(old).encode(params, {}, x, watch=layer)["watched"]
        np.testing.assert_array_equal(found, seen[:, 1:].reshape(2, 4, 4, 8))


def test_the_table_keeps_the_grid_of_the_pretraining():
    new = DENSE | WINDOWS | {"image_size": (24, 20), "layer_scale": True}
    old = VIT | {"position": "learned"}
    params, ours, given, fresh = moved(old, new)
    table = params["encoder"]["pos_embed"]
    np.testing.assert_array_equal(given["pos_embed"], table)
    assert "cls_token" not in given
    names = ("attn/rel_pos_h", "attn/rel_pos_w", "gamma_1", "gamma_2")
    assert fresh == {f"blocks_{i}/{name}" for i in (0, 1) for name in names}
    assert not by_path(ours["encoder"])["blocks_0/attn/rel_pos_h"].any()
    _, _, given, _ = moved(old, new | {"pretrained_grid": (2, 8)})
    want = positions.resize(jnp.asarray(table[0]), (4, 4), (2, 8))
    np.testing.assert_array_equal(given["pos_embed"][0], want)


@pytest.mark.parametrize("relative", ["shared", "each"])
def test_beit_brings_its_bias_and_scales(relative):
    old = BEIT | {"relative": relative, "pool": "mean_norm"}
    new = DENSE | {"relative": "bias", "class_token": True, "layer_scale": True}
    params, ours, given, fresh = moved(old, new)
    assert not fresh and not given["pos_embed"].any()
    x = images()
    found = encode(network(new), ours, x)["map"]
    want = encode(network(old), params, x)["map"]
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_a_bias_that_has_no_place_is_not_dropped():
    found = {"relative_bias": np.ones((52, 2)), "cls_token": np.ones((1, 1, 8))}
    given, _ = adapt_weights.adapt_part(
        "encoder", found, {}, {"encoder": BEIT}, {"encoder": DENSE}
    )
    assert given.keys() == {"relative_bias"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"relative": "decomposd"}, "did you mean 'decomposed'"),
        ({"remat": "all"}, "model.encoder.remat 'all' does not exist"),
        ({"taps": (1, 2)}, r"taps=\(1, 2\): there is no block 2"),
        ({"global_blocks": (-1,)}, r"global_blocks=\(-1,\): there is no block -1"),
        ({"class_token": True, "window": 3}, "class_token=True does not go with"),
        ({"relative": "bias", "window": 3}, "window=3 does not go with"),
        ({"heads": 3}, "width=8 is not a multiple of 4 and of"),
        ({"image_size": (16, 18)}, "18 is not a multiple of model.encoder.patch=4"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    with pytest.raises(UsageError, match=message):
        network(DENSE | change)
