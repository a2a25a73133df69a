"""Residual networks and the heads of siamese methods: shapes, starts, what is sent."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from mixjax import models
from mixjax.errors import UsageError
from mixjax.models import projectors
from mixjax.profiling import flops
from mixjax.sharding import meshes
from tests.models.test_networks import walk
from tests.sharding.test_meshes import sent as collectives


def tiny(stem="cifar", **changes):
    """Two stages of two blocks."""
    c = common.resnet(18, (16, 16), stem)
    c.layers, c.widths, c.stem_width = (2, 2), (4, 8), 4
    c.update(changes)
    return c


def network(encoder, precision="float32", groups=1, **parts):
    c = ConfigDict({"precision": precision, "norm": common.norm(groups)})
    return models.make(ConfigDict({**c, "encoder": encoder, **parts}))


def images(n=8, side=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, side, side, 3))
    return jnp.asarray(x, jnp.float32)


def shapes(net, x, **how):
    """Of what a network makes of x."""

    def both(key, x):
        return net.apply(*net.init(key, x), x, train=True, **how)[0]

    return jax.eval_shape(both, jax.random.key(0), x)


def start(net, x):
    return jax.jit(net.init)(jax.random.key(0), x[:1])


def some(net, x, seed=0):
    """Random variables: quicker than those a network starts from, and nothing is 0."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x[:1])
    draw = lambda a: jnp.asarray(0.1 + 0.3 * rng.random(a.shape), jnp.float32)
    sign = lambda a: draw(a) * jnp.sign(jnp.asarray(rng.normal(size=a.shape)))
    return jax.tree.map(sign, shapes[0]), jax.tree.map(draw, shapes[1])


def train(net, variables, x, **how):
    """(outputs, statistics) of training."""
    return jax.jit(lambda v, x: net.apply(*v, x, train=True, **how))(variables, x)


def least(**changes):
    """One block, for what is put on it."""
    return tiny(layers=(1,), widths=(4,), **changes)


# --- the backbone ------------------------------------------------------------------


@pytest.mark.parametrize(
    "depth, expected",
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)],
)
def test_known_numbers_of_parameters(depth, expected):
    """With a classifier of 1000, as torchvision has them."""
    head = {"classes": 1000, "init_std": 0.01, "feature_norm": False}
    net = network(common.resnet(depth, (224, 224), "imagenet"), classifier=head)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), images(1, 224))
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("depth, macs", [(18, 1_814_073_344), (50, 4_089_184_256)])
def test_known_numbers_of_operations(depth, macs):
    """Multiply-adds at 224 pixels, as torchvision's pages have them; two operations."""
    head = {"classes": 1000, "init_std": 0.01, "feature_norm": False}
    net = network(common.resnet(depth, (224, 224), "imagenet"), classifier=head)
    x = images(1, 224)
    params, stats = jax.eval_shape(net.init, jax.random.key(0), x)
    logits = lambda p, s, x: net.apply(p, s, x, train=False)[0]["logits"]
    assert flops.count(logits, params, stats, x) == 2 * macs


@pytest.mark.parametrize(
    "depth, stem, side, sides",
    [
        (18, "cifar", 32, (32, 16, 8, 4)),
        (26, "swav", 32, (34, 17, 9, 5)),
        (18, "small", 64, (32, 16, 8, 4)),
        (50, "imagenet", 224, (56, 28, 14, 7)),
        (50, "imagenet", 96, (24, 12, 6, 3)),
        (18, "small", 33, (17, 9, 5, 3)),
    ],
)
def test_sides_of_maps(depth, stem, side, sides):
    net = network(common.resnet(depth, (side, side), stem))
    found = shapes(net, images(2, side), encoder={"stages": True})
    assert tuple(x.shape[1] for x in found["stages"]) == sides
    assert net.geometry.grid == found["map"].shape[1:3] == (sides[-1], sides[-1])
    # What one place of the last map stands for.
    assert net.geometry.patch == {"imagenet": 32, "small": 16}.get(stem, 8)
    assert found["features"].shape == (2, 512 if depth == 18 else 2048)


def test_other_sizes_than_its_own_will_do():
    net = network(tiny())
    assert net.geometry.any_size
    x = images()
    variables = some(net, x)
    evaluate = jax.jit(lambda v, x: net.apply(*v, x, train=False)[0])
    outputs = evaluate(variables, images(2, 24))
    assert outputs["map"].shape == (2, 12, 12, 8) and "stages" not in outputs
    chex.assert_trees_all_close(outputs["features"], outputs["map"].mean((1, 2)))
    same = jax.jit(net.features)(*variables, images(2, 24))
    chex.assert_trees_all_close(same, outputs["features"])


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_initial_values(stem):
    c = common.resnet(50, (16, 16), stem)
    c.layers, c.widths = (1,), (128,)
    net = network(c)
    params, stats = start(net, images(1))
    enc, kernel = params["encoder"], params["encoder"]["conv1"]["kernel"]
    if stem == "cifar":  # the stem was put in place of another: uniform
        bound = 27**-0.5
        assert 0.99 * bound < float(jnp.abs(kernel).max()) <= bound
        assert abs(float(kernel.std()) * 3**0.5 / bound - 1) < 0.03
    else:
        assert abs(float(kernel.std()) / (2 / (64 * 49)) ** 0.5 - 1) < 0.03
    block = enc["layer1_0"]
    for name, fan_out in {
        "conv1": 128,
        "conv2": 128 * 9,
        "conv3": 512,
        "downsample_conv": 512,
    }.items():
        kernel, std = block[name]["kernel"], (2 / fan_out) ** 0.5
        assert abs(float(kernel.std()) / std - 1) < 0.02
        assert float(jnp.abs(kernel).max()) > 3.5 * std  # a normal that is not cut
        assert set(block[name]) == {"kernel"}
    assert (block["bn3"]["scale"] == 1).all() and not block["bn3"]["bias"].any()
    assert set(stats) == {"encoder"} and set(stats["encoder"]) == {"batch_stats"}
    stats = stats["encoder"]["batch_stats"]
    chex.assert_trees_all_equal_structs(stats["layer1_0"]["bn1"], {"mean": 0, "var": 0})
    assert not stats["bn1"]["mean"].any() and (stats["bn1"]["var"] == 1).all()


@pytest.mark.parametrize("block, last", [("basic", "bn2"), ("bottleneck", "bn3")])
@pytest.mark.parametrize("zero_init", [True, False])
def test_zero_init_makes_identities(block, last, zero_init):
    deep = network(tiny(block=block, zero_init=zero_init))
    shallow = network(tiny(block=block, layers=(1, 1)))  # the same less the second ones
    x = images()
    variables = start(deep, x)
    zeros = [
        f"{name}/{bn}"
        for name, module in variables[0]["encoder"].items()
        for bn in (module if name.startswith("layer") else ())
        if bn.startswith("bn") and not module[bn]["scale"].any()
    ]
    blocks = [f"layer{i}_{j}" for i in (1, 2) for j in (0, 1)]
    assert sorted(zeros) == [f"{b}/{last}" for b in blocks if zero_init]
    found, less = (train(n, variables, x)[0] for n in (deep, shallow))
    assert bool((found["map"] == less["map"]).all()) == zero_init


def gradients(net, x):
    """A function of variables: (loss, (outputs, statistics)), gradients."""

    def loss(params, stats, x):
        outputs, stats = net.apply(params, stats, x, train=True)
        weights = images(1, outputs["features"].shape[-1])[0, 0, :, :1].T
        return jnp.mean(outputs["features"] * weights), (outputs["features"], stats)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_remat_changes_nothing_but_the_memory():
    x = images()
    variables = some(network(tiny()), x)
    steps = [gradients(network(tiny(remat=r)), x) for r in ("none", "block")]
    plain, again = (step(*variables, x) for step in steps)
    chex.assert_trees_all_close(plain, again, rtol=1e-5, atol=1e-6)
    for step, count in zip(steps, (0, 4), strict=True):
        jaxpr = jax.make_jaxpr(step)(*variables, x).jaxpr
        names = [e.primitive.name for e in walk(jaxpr)]
        assert names.count("remat2") == count, set(names)


def test_bfloat16_keeps_islands():
    x = images()
    exact, rough = (network(tiny(), p) for p in ("float32", "bfloat16"))
    variables = some(rough, x)
    (outputs, stats), (near, _) = (train(n, variables, x) for n in (rough, exact))
    everything = jax.tree.leaves((outputs, stats, variables))
    assert {a.dtype for a in everything} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(outputs["features"], near["features"], atol=0.05)
    assert not np.allclose(outputs["features"], near["features"], atol=1e-5)
    jaxpr = jax.make_jaxpr(lambda x: rough.apply(*variables, x, train=True)[0])(x)
    convs = [e for e in walk(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert len(convs) == 1 + 8 + 1
    assert all(v.aval.dtype == jnp.bfloat16 for e in convs for v in e.invars)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(fsdp=1)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_groups_on_their_devices_send_no_activations(mesh, stem):
    """Nothing at all forward; backward the sums of gradients and of statistics."""
    rows = 8 * 11  # no parameter has an axis that 11 divides
    net = network(tiny(stem), groups=8)
    x = images(rows)
    variables = some(net, x)
    alone = gradients(net, x)(*variables, x)
    variables = jax.device_put(variables, meshes.replicated(mesh))
    x = jax.device_put(x, meshes.batched(mesh))
    forward = jax.jit(lambda v, x: net.apply(*v, x, train=True)[0]["features"])
    assert not collectives(forward.lower(variables, x).compile().as_text())
    step = gradients(net, x).lower(*variables, x).compile()
    found = collectives(step.as_text())
    assert {name for name, _ in found} == {"all-reduce"}
    assert not [s for _, sent in found for s in sent if any(n % 11 == 0 for n in s)]
    chex.assert_trees_all_close(alone, step(*variables, x), rtol=1e-4, atol=1e-5)


# --- heads -------------------------------------------------------------------------

OFFICIAL_SIMSIAM = common.projector((12, 12, 12), True, "plain")
OFFICIAL_SIMSIAM.hidden_bias = OFFICIAL_SIMSIAM.last_bias = False
NO_BIAS = common.projector((6, 12), True, "none")
NO_BIAS.hidden_bias = False
HEADS = {  # section, parameters of each layer, layers with statistics
    "moco": (common.projector((12,), False, "none"), {"fc1": "bk"}, ""),
    "moco v2": (
        common.projector((6, 12), False, "none"),
        {"fc1": "bk", "fc2": "bk"},
        "",
    ),
    "simclr": (
        common.projector((6, 12), True, "affine"),
        {"fc1": "bk", "bn1": "bs", "fc2": "bk", "bn2": "bs"},
        "12",
    ),
    "byol": (
        common.projector((6, 12), True, "none"),
        {"fc1": "bk", "bn1": "bs", "fc2": "bk"},
        "1",
    ),
    "simsiam": (
        OFFICIAL_SIMSIAM,
        {"fc1": "k", "bn1": "bs", "fc2": "k", "bn2": "bs", "fc3": "k"},
        "123",
    ),
    "simsiam's predictor": (NO_BIAS, {"fc1": "k", "bn1": "bs", "fc2": "bk"}, "1"),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_of_the_papers(name):
    section, layers, norms = HEADS[name]
    for part in ("projector", "predictor"):
        parts = {"projector": section} | {part: section}
        net = network(least(), **parts)
        params, stats = jax.eval_shape(net.init, jax.random.key(0), images(1))
        found = {k: "".join(sorted(p[0] for p in v)) for k, v in params[part].items()}
        assert found == layers
        kept = stats.get(part, {"batch_stats": {}})["batch_stats"]
        assert sorted(kept) == [f"bn{i}" for i in norms]
        outputs = shapes(net, images())
        name = {"projector": "projection", "predictor": "prediction"}[part]
        assert outputs[name].shape == (8, 12) and outputs[name].dtype == jnp.float32


def test_a_projector_by_numpy():
    net = network(least(), projector=common.projector((6, 5), True, "plain"))
    x = images()
    params, stats = some(net, x)
    outputs, _ = train(net, (params, stats), x)
    p = jax.tree.map(np.asarray, params["projector"])
    linear = lambda y, layer: y @ layer["kernel"] + layer["bias"]
    normal = lambda y: (y - y.mean(axis=0)) / np.sqrt(y.var(axis=0) + 1e-5)
    y = normal(linear(outputs["features"], p["fc1"]))
    y = np.maximum(y * p["bn1"]["scale"] + p["bn1"]["bias"], 0)
    want = normal(linear(y, p["fc2"]))
    np.testing.assert_allclose(outputs["projection"], want, atol=1e-3)


def test_heads_start_as_torch_starts_them():
    head = common.projector((64, 100), False, "none")
    net = network(
        tiny(layers=(1,), widths=(256,)), projector=head, prototypes={"count": 30}
    )
    params, _ = start(net, images())
    for layer, fan_in in (("fc1", 256), ("fc2", 64)):
        for value in params["projector"][layer].values():
            bound = fan_in**-0.5
            assert 0.9 * bound < float(jnp.abs(value).max()) <= bound
            assert abs(float(value.mean())) < 0.2 * bound
    kernel = params["prototypes"]["kernel"]
    assert kernel.shape == (100, 30)
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1.0, rtol=1e-6)
    # Uniform before: the largest of 100 is 1.7 deviations, not the 2.5 of a normal.
    tops = jnp.abs(kernel).max(axis=0) / kernel.std(axis=0)
    assert 1.5 < float(tops.min()) and float(tops.max()) < 2.1


def test_prototypes_give_cosines():
    net = network(
        least(),
        "bfloat16",
        projector=common.projector((6,), False, "none"),
        prototypes=common.prototypes(3),
    )
    params, stats = some(net, images())
    projection = jnp.asarray([[3.0, 0, 4, 0, 0, 0], [0.0] * 6])

    @jax.jit
    def scores(projection):
        given = {"projection": projection}
        return net.run(params, stats, given, ["prototypes"], train=True)[0]

    found, kernel = scores(projection), params["prototypes"]["kernel"]
    unit = np.array([[0.6, 0, 0.8, 0, 0, 0], [0.0] * 6])
    np.testing.assert_allclose(found["embedding"], unit, atol=1e-7)
    np.testing.assert_allclose(found["scores"], unit @ kernel, atol=1e-6)
    chex.assert_trees_all_equal(found["prototypes"], kernel)
    slope = jax.grad(lambda x: scores(x)["scores"].sum())(projection)
    assert np.isfinite(slope).all() and float(jnp.abs(slope[0]).max()) > 0


def heads(**changes):
    both = common.projector((6, 5), True, "none")
    return {"predictor": both, "projector": both} | changes


def test_parts_run_in_order_however_a_config_sorts_them():
    net = network(least(), prototypes=common.prototypes(3), **heads())
    assert net.parts == ("encoder", "projector", "predictor", "prototypes")


def test_a_part_alone_changes_its_own_statistics():
    net = network(least(), **heads())
    x = images()
    params, stats = some(net, x)
    outputs, _ = train(net, (params, stats), x)
    alone = lambda outputs: net.run(params, stats, outputs, ("predictor",), train=True)
    again, new = jax.jit(alone)(outputs)
    chex.assert_trees_all_close(again, outputs, atol=1e-6)
    changed = {k for k in new if not jax.tree.all(jax.tree.map(same, new[k], stats[k]))}
    assert changed == {"predictor"}
    _, still = jax.jit(lambda x: net.apply(params, stats, x, train=False))(x)
    chex.assert_trees_all_equal(still, stats)


def same(a, b):
    return bool((a == b).all())


def test_a_projector_may_read_a_map():
    net = network(least(), projector=common.projector((5,), False, "none"))
    x = images()
    variables = some(net, x)
    read = {"projector": {"read": lambda outputs: outputs["map"]}}
    outputs, _ = train(net, variables, x, **read)
    assert outputs["projection"].shape == (8, 16, 16, 5)
    pooled, _ = train(net, variables, x)
    want = outputs["projection"].mean(axis=(1, 2))
    np.testing.assert_allclose(want, pooled["projection"], atol=1e-5)


# --- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"block": "bottelneck"}, r"model\.encoder\.block 'bottelneck' .*'bottleneck'"),
        ({"stem": "cifar10"}, r"model\.encoder\.stem 'cifar10' .*'cifar'"),
        ({"stem_init": "torch"}, r"model\.encoder\.stem_init 'torch' .*torch_default"),
        ({"remat": "blocks"}, r"model\.encoder\.remat 'blocks' .*'block'"),
        ({"layers": (2, 2, 2)}, r"layers=\(2, 2, 2\) and .*widths=\(4, 8\) differ"),
    ],
)
def test_wrong_fields_of_a_backbone(changes, words):
    with pytest.raises(UsageError, match=words):
        network(tiny(**changes))


def test_wrong_fields_of_a_head():
    with pytest.raises(
        UsageError, match=r"model\.predictor\.last_norm 'afine' .*'affi"
    ):
        network(least(), **heads(predictor=common.projector((5,), True, "afine")))
    with pytest.raises(UsageError, match=r"model\.projector\.widths=\(\) has no layer"):
        network(least(), projector=common.projector((), True, "none"))


def test_wrong_norms():
    parts = {"precision": "float32", "encoder": tiny()}
    with pytest.raises(UsageError, match=r"model\.norm is missing"):
        shapes(models.make(parts), images())
    wrong = {**common.norm(1), "moment": 0.9}
    with pytest.raises(
        UsageError, match=r"model\.norm\.moment is not a field.*'momentum'"
    ):
        models.make(parts | {"norm": wrong})
    net = network(least(), groups=3)
    with pytest.raises(
        UsageError, match=r"model\.norm\.groups=3 does not divide .* 8;"
    ):
        shapes(net, images())
    plain = models.make(parts | {"encoder": common.vit("Ti", (16, 16), 8)})
    assert some(plain, images())[1] == {}  # who has no batch norm needs no section


def test_a_unit_vector_is_one_of_length_one():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]], jnp.bfloat16)
    found = projectors.unit(x, -1)
    want = [[0.6, 0.8], [0.0, 0.0], [1e-8, 0.0]]
    np.testing.assert_allclose(found, want, rtol=1e-2)
    assert found.dtype == jnp.float32
