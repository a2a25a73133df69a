"""Networks: sizes, initial values, and ways of running that must not matter."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import masked
from mixjax import models
from mixjax.errors import UsageError
from mixjax.models import heads, positions

TINY = {
    "name": "vit",
    "drop_path": 0.0,
    "image_size": (8, 12),
    "channels": 3,
    "patch": 4,
    "width": 16,
    "depth": 3,
    "heads": 2,
    "mlp_ratio": 2.0,
    "position": "sincos",
    "pool": "class",
    "remat": "none",
    "scan": False,
}
DECODER = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
DECODER |= {"remat": "none", "scan": False}


def network(precision="float32", decoder=True, **changes):
    config = {"precision": precision, "encoder": TINY | changes}
    how = {k: changes[k] for k in ("remat", "scan") if k in changes}
    if decoder:
        config["decoder"] = DECODER | how
    return models.make(config)


def images(n=2, size=(8, 12), channels=3):
    return jax.random.normal(jax.random.key(5), (n, *size, channels))


@pytest.mark.parametrize(
    "size, patch, millions",
    [("S", 16, 47.578240), ("B", 16, 111.907840), ("L", 16, 329.541888)]
    + [("H", 14, 657.074508)],
)
def test_parameter_counts(size, patch, millions):
    """Spec 2.1: encoder, decoder and both fixed tables."""
    config = masked.imagenet(size, patch, 800)
    net = models.make(config.model)
    shapes, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    rows = 1 + net.geometry.grid[0] * net.geometry.grid[1]
    tables = rows * (config.model.encoder.width + config.model.decoder.width)
    assert count + tables == round(millions * 1e6)


def test_initial_values():
    """Trap 4: bounds of the official initialisation at D = 768, P = 768."""
    encoder = TINY | {"image_size": (16, 16), "patch": 16, "width": 768}
    encoder |= {"heads": 12, "depth": 1, "mlp_ratio": 4.0}
    net = models.make({"precision": "float32", "encoder": encoder, "decoder": DECODER})
    params, _ = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    enc = params["encoder"]
    bounds = {
        "patch": (enc["patch_embed"]["proj"]["kernel"], 0.0625),
        "patch bias": (enc["patch_embed"]["proj"]["bias"], 0.0361),
        "qkv": (enc["blocks_0"]["attn"]["qkv"]["kernel"], 0.0442),
        "proj": (enc["blocks_0"]["attn"]["proj"]["kernel"], 0.0625),
        "fc1": (enc["blocks_0"]["mlp"]["fc1"]["kernel"], 0.0395),
    }
    for name, (array, bound) in bounds.items():
        top = float(jnp.abs(array).max())
        assert 0.96 * bound < top < 1.002 * bound, (name, top, bound)
    assert not enc["blocks_0"]["attn"]["qkv"]["bias"].any()
    for token in (enc["cls_token"], params["decoder"]["mask_token"]):
        assert token.ndim == 3 and 0.01 < float(token.std()) < 0.03


def test_shapes_of_a_non_square_image():
    net = network(channels=5)
    params, stats = net.init(jax.random.key(0), images(channels=5))
    outputs, _ = net.apply(params, stats, images(channels=5), train=True)
    assert outputs["tokens"].shape == (2, 1 + 6, 16)
    assert outputs["prediction"].shape == (2, 6, 4 * 4 * 5)
    assert (
        outputs["features"].shape
        == net.features(params, stats, images(channels=5)).shape
    )
    assert net.geometry.grid == (2, 3)


@pytest.mark.parametrize("remat", ["none", "block", "dots"])
@pytest.mark.parametrize("scan", [False, True])
def test_remat_and_scan_change_nothing(remat, scan):
    """The same parameters, outputs and gradients, however the blocks run."""
    plain, other = network(), network(remat=remat, scan=scan)
    params, _ = plain.init(jax.random.key(0), images())
    chex.assert_trees_all_equal(params, other.init(jax.random.key(0), images())[0])

    def gradient(net):
        def loss(p):
            outputs, _ = net.apply(p, {}, images(), train=True)
            return jnp.square(outputs["prediction"]).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    chex.assert_trees_all_close(gradient(plain), gradient(other), rtol=2e-5, atol=1e-6)


def test_scan_has_one_body():
    """Tracing does not grow with the depth when blocks are scanned."""

    def lines(depth):
        net = network(depth=depth, scan=True, decoder=False)
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), images())[0])
        run = lambda p: net.apply(p, {}, images(), train=True)[0]["features"]
        return str(jax.make_jaxpr(run)(params)).count("dot_general")

    assert lines(2) == lines(6)


def test_bfloat16_keeps_islands():
    """bf16 products; float32 parameters, outputs, softmax and norm statistics."""
    net = network("bfloat16")
    params, _ = net.init(jax.random.key(0), images())
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    run = lambda p: net.apply(p, {}, images(), train=True)[0]
    outputs = run(params)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(run)(params).jaxpr
    kinds = {"exp": set(), "dot_general": set(), "rsqrt": set()}
    for equation in walk(jaxpr):
        if equation.primitive.name in kinds:
            kinds[equation.primitive.name].add(str(equation.invars[0].aval.dtype))
    assert kinds == {
        "exp": {"float32"},
        "rsqrt": {"float32"},
        "dot_general": {"bfloat16"},
    }
    full, _ = network().apply(params, {}, images(), train=True)
    chex.assert_trees_all_close(outputs, full, atol=0.1)


def walk(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


@pytest.mark.parametrize("grid", [(14, 14), (3, 7)])
def test_positions_say_column_first(grid):
    """Token 1 is row 0, column 1: sin(1) at channel 0, nothing in the row half."""
    table = positions.sincos_2d(grid, 64, class_token=True)
    assert table.shape == (1 + grid[0] * grid[1], 64)
    assert not table[0].any()
    assert table[2, 0] == pytest.approx(np.sin(1)) and table[2, 32] == 0
    below = table[1 + grid[1]]  # row 1, column 0
    assert below[0] == 0 and below[32] == pytest.approx(np.sin(1))
    np.testing.assert_allclose(np.square(table[1:]).sum(1), 32, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"image_size": (10, 12)}, "10 is not a multiple of model.encoder.patch=4"),
        ({"width": 18}, "model.encoder.width=18"),
        ({"position": "sincoz"}, "did you mean 'sincos'"),
        ({"pool": "avg"}, "model.encoder.pool 'avg'"),
        ({"remat": "blocks"}, "did you mean 'block'"),
        ({"dept": 3}, "did you mean 'depth'"),
        ({"name": "vitt"}, "did you mean 'vit'"),
    ],
)
def test_wrong_fields_are_named(changes, words):
    with pytest.raises(UsageError) as error:
        network(**changes)
    assert words in str(error.value)


def test_missing_field_is_named():
    config = {k: v for k, v in TINY.items() if k != "depth"}
    with pytest.raises(UsageError, match="model.encoder.depth is missing"):
        models.make({"precision": "float32", "encoder": config})


@pytest.mark.parametrize("field", ["dtype", "norm"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_what_all_parts_share_is_no_field_of_one(part, field):
    config = {"precision": "float32", "encoder": dict(TINY), "decoder": dict(DECODER)}
    config[part][field] = "float32"
    with pytest.raises(UsageError, match=rf"model\.{part}\.{field} is set for all"):
        models.make(config)


def test_a_decoder_may_predict_other_numbers_than_pixels():
    config = {"precision": "float32", "encoder": TINY, "decoder": DECODER | {"out": 9}}
    net = models.make(config)
    outputs, _ = net.apply(
        *net.init(jax.random.key(0), images()), images(), train=False
    )
    assert outputs["prediction"].shape == (2, 6, 9)
    assert outputs["prediction"].dtype == jnp.float32


def test_a_head_may_predict_other_numbers_than_pixels():
    """From the map of a backbone, as SimMIM's head predicts pixels."""
    head = heads.TargetHead(width=9, dtype=jnp.bfloat16)
    outputs = {"map": jnp.ones((2, 2, 3, 4))}
    found, variables = head.init_with_output(jax.random.key(0), outputs, train=False)
    assert found["prediction"].shape == (2, 2, 3, 9)
    assert found["prediction"].dtype == jnp.float32
    assert variables["params"]["proj"]["kernel"].shape == (4, 9)
    assert "target_head" in models.PARTS
