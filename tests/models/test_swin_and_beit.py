"""Swin and BEiT's ViT: sizes, initial values, windows, hidden tokens, skipped paths."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mixjax import models
from mixjax.errors import UsageError
from mixjax.models import positions, stochastic_depth, windows

TINY = {"channels": 3, "width": 8, "mlp_ratio": 2.0, "drop_path": 0.0}
TINY |= {"mask_token": True, "remat": "none"}
SWIN = TINY | {"name": "swin", "image_size": (32, 32), "patch": 2, "window": 4}
SWIN |= {"depths": (2, 1, 1), "heads": (1, 2, 4)}
BEIT = TINY | {"name": "beit", "image_size": (16, 24), "patch": 8, "depth": 3}
BEIT |= {"heads": 2, "layer_scale": 0.1, "pool": "mean", "relative": "shared"}
BEIT |= {"scan": False}
BOTH = pytest.mark.parametrize("config", [SWIN, BEIT], ids=["swin", "beit"])


def network(config, precision="float32", **changes):
    return models.make(
        {"precision": precision, "encoder": config | changes, "pixel_head": {}}
    )


def batch(net, n=2):
    shape = (n, *net.geometry.image_size, net.geometry.channels)
    return jax.random.normal(jax.random.key(5), shape)


def parameters(net, seed=0):
    """Random ones, so that nothing is zero or one: tables, biases, scales."""
    shapes, _ = jax.eval_shape(net.init, jax.random.key(0), batch(net))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draw = lambda key, x: 0.3 * jax.random.normal(key, x.shape)
    return jax.tree.unflatten(tree, list(map(draw, keys, leaves)))


def encode(net, params, x, train=False, rng=None, **inputs):
    run = jax.jit(
        lambda params, x, rng: net.apply(
            params, {}, x, train=train, rng=rng, encoder=inputs
        )[0]
    )
    return run(params, x, rng)


def count(config, **parts):
    net = models.make({"precision": "float32", "encoder": config, **parts})
    images = jax.ShapeDtypeStruct((1, *net.geometry.image_size, 3), jnp.float32)
    shapes, _ = jax.eval_shape(net.init, jax.random.key(0), images)
    return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "size, expected",
    [("Ti", 28_288_354), ("S", 49_606_258), ("B", 87_768_224), ("L", 196_532_476)],
)
def test_swin_has_the_known_number_of_parameters(size, expected):
    """With a classifier of 1000, as published; 86 743 224 without for B."""
    config = common.swin(size, (224, 224), window=7)
    config.mask_token = False
    head = {"classes": 1000, "init_std": 0.02, "feature_norm": False}
    assert count(config, classifier=head) == expected
    width = config.width * 2 ** (len(config.depths) - 1)
    assert count(config) == expected - 1000 * (width + 1)
    config.mask_token = True
    assert count(config) == expected - 1000 * (width + 1) + config.width


def test_beit_has_the_known_number_of_parameters():
    """BEiT-B/16 with a table per block and a classifier of 1000, as published."""
    config = common.beit("B", (224, 224), 16)
    config.mask_token, config.relative, config.pool = False, "each", "mean_norm"
    head = {"classes": 1000, "init_std": 0.02, "feature_norm": False}
    assert count(config, classifier=head) == 86_530_984


def test_initial_values_of_swin():
    """Normal with deviation 0.02, not cut at two of them; zero biases."""
    net = network(SWIN, width=64, heads=(2, 4, 8))
    params, _ = jax.jit(net.init)(jax.random.key(0), batch(net))
    enc, pixels = params["encoder"], params["pixel_head"]["proj"]
    bound = (2 * 2 * 3) ** -0.5  # torch's default, which nothing resets
    kernel = enc["patch_embed"]["proj"]["kernel"]
    assert 0.95 * bound < float(jnp.abs(kernel).max()) <= bound
    assert 0.8 * bound < float(jnp.abs(enc["patch_embed"]["proj"]["bias"]).max())
    for name in ("kernel", "bias"):
        assert 0.95 / 16 < float(jnp.abs(pixels[name]).max()) <= 1 / 16
    block = enc["stage_0"]["blocks_1"]
    table = block["attn"]["relative_bias"]
    assert table.shape == (7 * 7, 2) and 0.015 < float(table.std()) < 0.025
    kernels = [block["attn"]["qkv"], block["attn"]["proj"], block["mlp"]["fc1"]]
    for layer in [*kernels, block["mlp"]["fc2"], enc["stage_0"]["merge"]["reduction"]]:
        assert 0.019 < float(layer["kernel"].std()) < 0.021
        assert float(jnp.abs(layer["kernel"]).max()) > 0.05
        assert "bias" not in layer or not layer["bias"].any()
    assert "bias" not in enc["stage_0"]["merge"]["reduction"]
    assert "merge" not in enc["stage_2"]


def test_initial_values_of_beit():
    """Normal cut at one deviation of 0.02; the end of branch i / sqrt(2 (i + 1))."""
    net = network(BEIT, width=64)
    params, _ = jax.jit(net.init)(jax.random.key(0), batch(net))
    enc = params["encoder"]
    assert not enc["patch_embed"]["proj"]["bias"].any()
    assert not enc["relative_bias"].any() and enc["relative_bias"].shape == (18, 2)
    tops = {1.0: [enc["patch_embed"]["proj"]["kernel"]]}
    for i in range(3):
        block = enc[f"blocks_{i}"]
        assert set(block["attn"]["qkv"]) == {"kernel"}
        assert not block["attn"]["q_bias"].any() and not block["attn"]["v_bias"].any()
        chex.assert_trees_all_equal(block["gamma_1"], jnp.full(64, 0.1))
        tops[1.0] += [block["attn"]["qkv"]["kernel"], block["mlp"]["fc1"]["kernel"]]
        ends = [block["attn"]["proj"]["kernel"], block["mlp"]["fc2"]["kernel"]]
        tops[(2 * (i + 1)) ** -0.5] = ends
    for factor, kernels in tops.items():
        for kernel in kernels:
            assert 0.99 * 0.02 * factor < float(kernel.max()) <= 0.02 * factor * 1.0001
    for token in (enc["cls_token"], enc["mask_token"]):
        assert 0.005 < float(token.std()) and float(jnp.abs(token).max()) <= 0.02


@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
@pytest.mark.parametrize("class_token", [False, True])
def test_relative_bias_by_its_definition(grid, class_token):
    r, c = grid
    rows = (2 * r - 1) * (2 * c - 1) + 3 * class_token
    table = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
    bias = jax.jit(positions.relative_bias, static_argnums=(1, 2))(
        table, grid, class_token
    )
    first = int(class_token)
    for query in np.ndindex(grid):
        for key in np.ndindex(grid):
            up, left = query[0] - key[0] + r - 1, query[1] - key[1] + c - 1
            where = [first + i * c + j for i, j in (query, key)]
            want = table[up * (2 * c - 1) + left]
            np.testing.assert_array_equal(bias[:, where[0], where[1]], want)
    if class_token:
        np.testing.assert_array_equal(bias[:, 0, 0], table[-1])
        assert (bias[:, 0, 1:] == table[-3][:, None]).all()
        assert (bias[:, 1:, 0] == table[-2][:, None]).all()


def test_fold_and_back():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    folded = windows.fold(x, 2, 4)
    assert folded.shape == (2, 6 * 4, 4, 2)
    # Window 4 is row 1, column 1; its token 1 is right of the first; head 3.
    np.testing.assert_array_equal(folded[1, 4 * 4 + 3, 1], x[1, 2, 3, 6:])
    np.testing.assert_array_equal(windows.unfold(folded, (4, 6), 2), x)


@pytest.mark.parametrize("size, window", [((8, 12), 4), ((6, 9), 3), ((14, 14), 7)])
def test_only_neighbours_meet_in_a_shifted_window(size, window):
    """A window wraps around the map; tokens of its two sides stay apart."""
    shift = window // 2
    bias = np.asarray(windows.shift_bias(size, window, shift))
    where = np.stack(np.mgrid[: size[0], : size[1]], axis=-1)
    where = np.roll(where, (-shift, -shift), axis=(0, 1))
    h, w = size
    where = where.reshape(h // window, window, w // window, window, 2)
    where = where.transpose(0, 2, 1, 3, 4).reshape(-1, window**2, 2)  # [W, n, 2]
    apart = np.abs(where[:, :, None] - where[:, None]).max(-1) >= window
    assert bias.shape == (len(where), 1, window**2, window**2)
    np.testing.assert_array_equal(bias[:, 0] == windows.FAR, apart)
    assert (bias[:, 0][~apart] == 0).all() and apart.any()


def test_swin_of_a_non_square_image():
    net = network(SWIN, image_size=(32, 64), channels=5)
    outputs = encode(net, parameters(net), batch(net))
    assert net.geometry.grid == (16, 32)
    assert outputs["embedding"].shape == (2, 16 * 32, 8)
    maps = [(2, 16, 32, 8), (2, 8, 16, 16), (2, 4, 8, 32)]
    assert [x.shape for x in outputs["stages"]] == maps
    assert outputs["map"].shape == maps[-1] and outputs["features"].shape == (2, 32)
    assert outputs["prediction"].shape == (2, 32, 64, 5)
    chex.assert_trees_all_close(
        outputs["features"], outputs["map"].mean((1, 2)), atol=1e-6
    )


@pytest.mark.parametrize("pool", ["mean", "mean_norm", "class"])
def test_beit_of_a_non_square_image(pool):
    net = network(BEIT, pool=pool, relative="each")
    params = parameters(net)
    outputs = encode(net, params, batch(net))
    assert outputs["tokens"].shape == (2, 7, 8) and outputs["map"].shape == (2, 2, 3, 8)
    chex.assert_trees_all_equal(
        outputs["map"].reshape(2, 6, 8), outputs["tokens"][:, 1:]
    )
    norms = {"norm", "fc_norm"} & set(params["encoder"])
    assert norms == {"fc_norm" if pool == "mean_norm" else "norm"}
    pooled = outputs["tokens"][:, 0]
    if pool == "mean":
        pooled = outputs["tokens"][:, 1:].mean(1)
    if pool != "mean_norm":
        chex.assert_trees_all_close(outputs["features"], pooled, atol=1e-6)


@BOTH
def test_bfloat16_leaves_float32(config):
    net = network(config, "bfloat16")
    params = parameters(net)
    outputs = encode(net, params, batch(net))
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    full = encode(network(config), params, batch(net))
    chex.assert_trees_all_close(outputs["map"], full["map"], atol=0.1)


@BOTH
def test_hidden_tokens_are_not_seen(config):
    net = network(config)
    params, x = parameters(net), batch(net)
    length = net.geometry.grid[0] * net.geometry.grid[1]
    plain = encode(net, params, x)
    none = encode(net, params, x, hide=jnp.zeros((2, length)))
    chex.assert_trees_all_close(plain, none, atol=1e-6)
    every = encode(net, params, x, hide=jnp.ones((2, length)))
    chex.assert_trees_all_close(every["map"][0], every["map"][1], atol=1e-6)
    chex.assert_trees_all_equal(every["embedding"], plain["embedding"])
    # Where only the first token is hidden, only its pixels do not matter.
    first = jnp.zeros((2, length)).at[:, 0].set(1.0)
    p = net.geometry.patch
    other = x.at[:, :p, :p].add(1.0)
    one, two = (encode(net, params, y, hide=first) for y in (x, other))
    chex.assert_trees_all_close(one["map"], two["map"], atol=1e-6)
    assert float(jnp.abs(one["map"] - plain["map"]).max()) > 1e-3
    changed = encode(net, params, other)["map"]
    assert float(jnp.abs(changed - plain["map"]).max()) > 1e-3


@BOTH
def test_select_comes_before_hide(config):
    net = network(config)
    params, x = parameters(net), batch(net)
    length = net.geometry.grid[0] * net.geometry.grid[1]
    hide = (jnp.arange(4 * length).reshape(4, length) % 3 == 0).astype(jnp.float32)
    twice = lambda x: jnp.repeat(x, 2, axis=0)
    both = encode(net, params, x, select=twice, hide=hide)
    assert both["embedding"].shape[0] == 2 and both["map"].shape[0] == 4
    by_hand = encode(net, params, jnp.repeat(x, 2, axis=0), hide=hide)
    chex.assert_trees_all_close(both["map"], by_hand["map"], atol=1e-6)


@BOTH
def test_hiding_needs_a_mask_token(config):
    net = network(config, mask_token=False)
    assert "mask_token" not in parameters(net)["encoder"]
    length = net.geometry.grid[0] * net.geometry.grid[1]
    with pytest.raises(ValueError, match="mask_token=True"):
        encode(net, parameters(net), batch(net), hide=jnp.zeros((2, length)))


WAYS = [(SWIN, {"remat": r}) for r in ("block", "dots")]
WAYS += [(BEIT, {"remat": r, "scan": s}) for r in ("none", "dots") for s in (0, 1)]
WAYS += [(BEIT | {"relative": "each"}, {"remat": "block", "scan": True})]


@pytest.mark.parametrize("config, how", WAYS)
def test_remat_and_scan_change_nothing(config, how):
    """Outputs and gradients, with the same paths skipped."""
    config = config | {"drop_path": 0.3}
    plain, other = network(config), network(config, **how)
    params, x, rng = parameters(plain), batch(plain), jax.random.key(1)

    def gradient(net):
        def loss(p):
            outputs, _ = net.apply(p, {}, x, train=True, rng=rng)
            return jnp.square(outputs["prediction"]).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    chex.assert_trees_all_close(gradient(plain), gradient(other), rtol=1e-4, atol=1e-5)


@BOTH
def test_paths_are_skipped_in_training_only(config):
    net, plain = network(config, drop_path=0.5), network(config)
    params, x = parameters(net), batch(net)
    want = encode(plain, params, x, train=True)["map"]
    chex.assert_trees_all_close(encode(net, params, x)["map"], want, atol=1e-6)
    keys = [jax.random.key(i) for i in range(2)]
    one, two = (encode(net, params, x, train=True, rng=k)["map"] for k in keys)
    assert float(jnp.abs(one - two).max()) > 1e-3
    again = encode(net, params, x, train=True, rng=keys[0])["map"]
    chex.assert_trees_all_equal(one, again)


def test_the_share_of_skipped_paths_rises_with_the_layer():
    drop = stochastic_depth.dropper(jax.random.key(0), 0.6, 4)
    ones = jnp.ones((4000, 2, 3))
    for layer, rate in enumerate((0.0, 0.2, 0.4, 0.6)):
        both = [np.asarray(drop(layer, branch, ones)) for branch in (0, 1)]
        for y in both:
            assert (y == y[:, :1, :1]).all()  # an example as a whole
            assert abs((y[:, 0, 0] == 0).mean() - rate) < 0.03
            np.testing.assert_allclose(y.max(), 1 / (1 - rate), rtol=1e-6)
        if layer:
            assert (both[0] != both[1]).any()
    assert stochastic_depth.dropper(None, 0.6, 4)(3, 0, ones) is ones
    assert (stochastic_depth.dropper(jax.random.key(0), 0.5, 1)(0, 0, ones) == 1).all()


@BOTH
def test_no_gather_and_no_scatter(config):
    """Both are slow on TPUs, and sums of a scatter have no fixed order on GPUs."""
    net = network(config, drop_path=0.1)
    params = parameters(net)
    length = net.geometry.grid[0] * net.geometry.grid[1]
    inputs = {"encoder": {"hide": jnp.ones((2, length))}}

    def loss(params, rng):
        outputs, _ = net.apply(params, {}, batch(net), train=True, rng=rng, **inputs)
        return jnp.abs(outputs["prediction"]).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params, jax.random.key(0)))
    assert "dot_general" in text
    assert "scatter" not in text and "gather" not in text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"image_size": (31, 31)}, r"\(31, 31\) does not .* \(32, 32\) or \(16, 16\)"),
        ({"image_size": (40, 40)}, r"\(16, 16\) or model\.encoder\.window=5\."),
        ({"image_size": (32, 40)}, r"\(32, 40\) .* are \(32, 32\) or \(8, 40\)"),
        ({"image_size": (0, 32)}, r"image_size=\(0, 32\)"),
        ({"window": 0}, r"window=0; the nearest that fit are .*window=2\."),
        ({"heads": (1, 2)}, r"heads=\(1, 2\) and .*depths=\(2, 1, 1\) differ"),
        ({"heads": (1, 3, 4)}, "heads=.*: 3 does not divide 16, the width of stage 1"),
        ({"remat": "all"}, "model.encoder.remat 'all' does not exist"),
        ({"windows": 3}, "did you mean 'window'"),
    ],
)
def test_wrong_fields_of_swin_are_named(changes, words):
    with pytest.raises(UsageError, match=words):
        network(SWIN, **changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"image_size": (20, 24)}, "20 is not a multiple of model.encoder.patch=8"),
        ({"heads": 3}, "model.encoder.width=8 is not a multiple"),
        ({"pool": "avg"}, "model.encoder.pool 'avg'"),
        ({"relative": "all"}, "model.encoder.relative 'all'"),
        ({"remat": "blocks"}, "did you mean 'block'"),
    ],
)
def test_wrong_fields_of_beit_are_named(changes, words):
    with pytest.raises(UsageError, match=words):
        network(BEIT, **changes)


# --- tables of another window ----------------------------------------------------


def table(grid, extra=0, heads=2):
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + extra
    return np.random.default_rng(1).normal(size=(rows, heads)).astype(np.float32)


def offsets(n):
    return np.arange(2 * n - 1) - (n - 1)


def test_resizing_to_the_same_window_is_nothing():
    old = table((6, 6), extra=3)
    np.testing.assert_array_equal(positions.resize_relative(old, (6, 6), (6, 6)), old)


@pytest.mark.parametrize("old, new", [((6, 6), (7, 7)), ((12, 12), (14, 14))])
def test_a_constant_stays_and_so_do_extra_rows(old, new):
    flat = np.full_like(table(old, extra=3), 0.7)
    flat[-3:] = [[1, 2], [3, 4], [5, 6]]
    found = positions.resize_relative(flat, old, new)
    assert found.dtype == np.float32 and found.shape == table(new, extra=3).shape
    np.testing.assert_array_equal(found[-3:], flat[-3:])
    np.testing.assert_allclose(found[:-3], 0.7, rtol=1e-6)


def test_a_rising_table_keeps_rising():
    """The ends stay the ends, the middle stays in the middle, rows stay rows."""
    old, new = (6, 4), (7, 6)
    down = np.repeat(offsets(6)[:, None], 7, axis=1).reshape(-1, 1)
    right = np.repeat(offsets(4)[None], 11, axis=0).reshape(-1, 1)
    both = np.concatenate([down, right], axis=1).astype(np.float32)
    found = positions.resize_relative(both, old, new).reshape(13, 11, 2)
    for values, end in ((found[:, 0, 0], 5), (found[0, :, 1], 3)):
        assert (np.diff(values) > 0).all()
        np.testing.assert_allclose(values, -values[::-1], atol=1e-5)
        np.testing.assert_allclose(values[-1], end, atol=1e-3)
        # Far offsets are stretched, near ones are nearly what they were.
        assert np.diff(values)[-1] < np.diff(values)[len(values) // 2]
    assert (np.ptp(found[..., 0], axis=1) < 1e-6).all()
    assert (np.ptp(found[..., 1], axis=0) < 1e-6).all()


def test_positions_of_the_old_values():
    """11 to 13 offsets: 1 + q + ... + q^4 = 6, and the sums of its terms."""
    where = positions._stretched(11, 13)
    steps = np.diff(where)[5:]
    ratio = steps[1] / steps[0]
    np.testing.assert_allclose(steps, ratio ** np.arange(5), rtol=1e-9)
    np.testing.assert_allclose(where[-1], 6, atol=1e-4)
    np.testing.assert_array_equal(positions._stretched(11, 11), np.arange(-5, 6))


def test_a_smaller_window_keeps_its_offsets():
    old = table((7, 7), extra=3)
    found = positions.resize_relative(old, (7, 7), (5, 6))
    want = old[:-3].reshape(13, 13, 2)[2:-2, 1:-1].reshape(-1, 2)
    np.testing.assert_allclose(found[:-3], want, atol=1e-5)
    np.testing.assert_array_equal(found[-3:], old[-3:])


def test_small_windows_are_resized_too():
    old = table((2, 3))
    found = positions.resize_relative(old, (2, 3), (3, 4))
    assert found.shape == table((3, 4)).shape and np.isfinite(found).all()
    with pytest.raises(ValueError, match="no offsets"):
        positions.resize_relative(table((1, 1)), (1, 1), (2, 2))
