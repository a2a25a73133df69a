"""What lies where, and what a training step sends between eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from mixjax import methods, models
from mixjax.data import pipeline
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.optim import optimizers, schedules
from mixjax.optim.schedules import Clock
from mixjax.profiling import collectives
from mixjax.sharding import meshes
from mixjax.training import initial_state, train_step
from tests.support import tiny


@pytest.fixture(scope="module")
def mesh():
    """Two rows of four devices that share a copy."""
    return meshes.make(fsdp=4)


@pytest.mark.parametrize("fsdp, data", [(1, 8), (2, 4), (8, 1)])
def test_all_devices_are_on_the_mesh(fsdp, data):
    mesh = meshes.make(fsdp=fsdp)
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp}
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}
    assert [t.name for t in mesh.axis_types] == ["Auto", "Auto"]
    assert meshes.describe(mesh) == f"8 x cpu as data {data} x fsdp {fsdp}"


@pytest.mark.parametrize("fsdp", [0, -1, 3, 16])
def test_fsdp_must_divide_the_devices(fsdp):
    with pytest.raises(UsageError, match=rf"fsdp={fsdp} .* 8 devices; 1, 2, 4, 8 "):
        meshes.make(fsdp=fsdp)


def specs(mesh, shapes, rules):
    """The axis that is cut of every leaf, None where it is replicated."""
    tree = {k: jax.ShapeDtypeStruct(v, jnp.bfloat16) for k, v in shapes.items()}
    laid = meshes.lay_out(mesh, tree, rules)
    assert {k: (v.shape, v.dtype) for k, v in laid.items()} == {
        k: (v.shape, v.dtype) for k, v in tree.items()
    }
    spec = {k: tuple(v.sharding.spec) for k, v in laid.items()}
    assert {a for axes in spec.values() for a in axes} <= {None, "fsdp"}
    return {k: s.index("fsdp") if "fsdp" in s else None for k, s in spec.items()}


def test_split_cuts_the_longest_axis_that_divides(mesh):
    shapes = {"long": (4, 16), "odd": (8, 17, 12), "tall": (32, 8), "same": (8, 8)}
    shapes |= {"none": (3, 5), "scalar": (), "vector": (8,)}
    want = {"long": 1, "odd": 2, "tall": 0, "same": 0}
    want |= {"none": None, "scalar": None, "vector": 0}
    assert specs(mesh, shapes, [(".", "split")]) == want


def test_the_first_rule_that_matches_counts(mesh):
    shapes = {"kernel": (8, 4), "kernel_too": (8, 4), "bias": (8,)}
    rules = [("kernel_", "replicate"), ("^kernel", "split")]
    found = specs(mesh, shapes, rules)
    assert found == {"kernel": 0, "kernel_too": None, "bias": None}


def test_rules_see_the_whole_path(mesh):
    leaf = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    tree = {"params": {"encoder": {"kernel": leaf}, "decoder": {"kernel": leaf}}}
    laid = meshes.lay_out(mesh, tree, [("^params/encoder/kernel$", "split")])
    spec = jax.tree.map(lambda x: tuple(x.sharding.spec), laid)["params"]
    assert spec["encoder"]["kernel"] == ("fsdp", None)
    assert spec["decoder"]["kernel"] == (None, None)


def test_nothing_is_cut_for_one_device_a_copy():
    assert specs(meshes.make(fsdp=1), {"a": (8, 8)}, [(".", "split")]) == {"a": None}


def test_an_unknown_word_is_refused(mesh):
    with pytest.raises(UsageError, match=r"mesh\.rules 'splitt' .*'split'"):
        specs(mesh, {"a": (8,)}, [("b", "splitt")])


@pytest.mark.parametrize(
    "batch, parts, message",
    [
        (63, 1, r"batch=63 is not a multiple of 8 devices; take 56 or 64\."),
        (40, 2, r"multiple of 8 devices x accumulate=2; take 32 or 48\."),
        (7, 1, r"take 8\."),
        (0, 1, r"take 8\."),
        (-20, 1, r"take 8\."),
        (64, 0, r"accumulate=0 must be at least 1\."),
    ],
)
def test_check_batch_says_what_fits(mesh, batch, parts, message):
    with pytest.raises(UsageError, match=message):
        meshes.check_batch(mesh, batch, parts)


def test_check_batch_takes_what_fits(mesh):
    meshes.check_batch(mesh, 48, 2)
    with pytest.raises(UsageError, match=r"^data\.eval_batch=9 "):
        meshes.check_batch(mesh, 9, 1, "data.eval_batch")


def test_rows_come_back_as_they_went_to_the_devices(mesh):
    images = np.arange(16 * 6, dtype=np.uint8).reshape(16, 2, 3)
    rows = {"views": (images,), "index": np.arange(16, dtype=np.int32)}
    np.testing.assert_array_equal(meshes.rows_here(mesh, 16), np.arange(16))
    there = meshes.to_devices(mesh, 16, rows)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(there), rows)
    pieces = there["index"].addressable_shards
    assert sorted(tuple(p.data.tolist()) for p in pieces) == [
        (i, i + 1) for i in range(0, 16, 2)
    ]
    everywhere = meshes.put(images, meshes.replicated(mesh))
    assert {p.data.shape for p in everywhere.addressable_shards} == {(16, 2, 3)}


# --- what a step sends -------------------------------------------------------------

EACH = 11  # images to a device: no parameter has an axis that 11 divides


def tiny_mae(accumulate):
    config = quickstart.get_config()
    config.accumulate, config.batch = accumulate, 8 * EACH * accumulate
    for part in (config.model.encoder, config.model.decoder):
        part.width, part.depth, part.heads = 32, 1, 2
    return config


def compiled(fsdp, config):
    """(HLO of a training step, the layout of its state)."""
    mesh = meshes.make(fsdp=fsdp)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(10, 10))
    schedule = schedules.make(
        config.schedule, batch=config.batch, clock=schedules.Clock(10, 1)
    )
    shape, key = jax.ShapeDtypeStruct, jax.random.key(0)
    example = {"views": (shape((1, 16, 16, 1), jnp.float32),)}
    example["index"] = shape((1,), jnp.int32)
    params = jax.eval_shape(method.init, key, example).params
    optimizer = optimizers.make(config.optim, schedule, params, clock=Clock(9, 9))
    init = initial_state.make_init(method, optimizer, example)
    layout = meshes.lay_out(mesh, jax.eval_shape(init, key), config.mesh.rules)
    views = [parse(text, "views") for text in config.data.views]
    augment = functools.partial(pipeline.augment, views)
    shardings = jax.tree.map(lambda s: s.sharding, layout)
    everywhere, cut = meshes.replicated(mesh), meshes.batched(mesh)
    step = jax.jit(
        meshes.within(
            mesh, train_step.make_step(method, optimizer, schedule, augment, config)
        ),
        in_shardings=(shardings, cut, everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    number = shape((config.batch,), jnp.int32)
    resident = {"images": shape((100, 8, 8, 1), jnp.uint8)}
    lowered = step.lower(layout, {"index": number, "label": number}, resident)
    # Less work on the code of each device; what is sent between them stays the same.
    quick = {"xla_backend_optimization_level": 0}
    return lowered.compile(compiler_options=quick).as_text(), layout


def sent(text):
    """[(kind, [shapes of its results])] of what compiled code sends."""
    return [
        (one.kind, [unordered(shape) for _, shape in one.results])
        for one in collectives.parse(text)
    ]


def unordered(shape):
    """Sizes of the axes, sorted, without those of 1: the compiler moves axes about."""
    return tuple(sorted(n for n in shape if n > 1))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_replicated_step_only_sums(accumulate):
    """Gradients, and metrics; no image, token or mask leaves its device."""
    text, layout = compiled(1, tiny_mae(accumulate))
    found = sent(text)
    assert {name for name, _ in found} == {"all-reduce"}
    assert len(found) <= 4, "one sum of everything, and a few for the metrics"
    summed = [shape for _, shapes in found for shape in shapes]
    leaves = [unordered(leaf.shape) for leaf in jax.tree.leaves(layout.params)]
    assert set(leaves) <= set(summed)
    assert not [s for s in summed if any(n % EACH == 0 for n in s)]


@pytest.mark.parametrize("name", tiny.METHODS)
def test_masked_methods_send_no_tokens(name):
    """Sums, and of MI-MAE and MI-SimMIM the latents that are each other's negatives."""
    rows = 8 * EACH * 4  # groups of four stay on their device
    views = {"mimae": 4, "misimmim": 2}.get(name, 0)
    width = {"model.encoder.width": 32, "batch": rows, "model.encoder.depth": 1}
    text, layout = compiled(1, tiny.masked(name, **width))
    # Latents, flat or by image, and their norms and sums of exponentials.
    each = [(rows * views,), (rows, views)]
    latents = {tuple(sorted(shape)) for a in each for shape in (a, (*a, 32))}
    for kind, shapes in sent(text):
        assert kind in ("all-reduce", "all-gather"), kind
        assert kind == "all-reduce" or views, "only latents are gathered"
        for shape in shapes:
            if any(n % EACH == 0 for n in shape):
                assert shape in latents, (kind, shape, text.count(kind))


@pytest.mark.parametrize("how", [{}, {"scan": True}, {"scan": True, "remat": "block"}])
def test_shared_copies_gather_parameters_alone(how):
    """Also inside a loop over layers, and where a device has fewer images than that."""
    config = tiny_mae(1)
    for part in (config.model.encoder, config.model.decoder):
        part.update(how)
    text, layout = compiled(4, config)
    found = sent(text)
    assert {name for name, _ in found} == {"all-gather", "all-reduce"}
    cut = [
        unordered(leaf.shape)
        for leaf in jax.tree.leaves(layout.params)
        if "fsdp" in leaf.sharding.spec
    ]
    assert len(cut) == 4 * 2 + 3  # the kernels of two blocks, and three beside them
    gathered = {s for name, shapes in found if name == "all-gather" for s in shapes}
    assert gathered == set(cut)
    assert not [
        s for _, shapes in found for s in shapes if any(n % EACH == 0 for n in s)
    ]
