"""Lam's pre-training: regions, their contrasts, and what teacher and queues see."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from mixjax import methods, models
from mixjax.config import recipes
from mixjax.errors import UsageError
from mixjax.mixtures import twin_boxes
from mixjax.objectives import region_terms
from mixjax.objectives.contrast import unit
from mixjax.objectives.region_pool import region_mean
from mixjax.optim import optimizers
from mixjax.optim.schedules import Clock
from mixjax.sharding import meshes
from mixjax.state import Method, Network, Objective, TrainState
from mixjax.training import train_step
from tests.support.tiny import ROOT

CLOCK = Clock(100, 100)
RNG = jax.random.key(3)
KINDS = {"a1": "", "paper": "", "consistent": "reverse=consistent", "three": ""}
KINDS["three"] = "positive=region"
B, SIZE = 16, 16


def recipe(kind, **changes):
    """The recipe of approach 1 ("a1") or a form of approach 2, narrow.

    changes: fields, with dots written as two underscores.
    """
    name = "c10_lam_a1" if kind == "a1" else "c10_lam_a2"
    c = recipes.load(f"{ROOT}/configs/{name}.py:{KINDS[kind]}")
    c.model.encoder.update(image_size=(SIZE, SIZE), layers=(1,), widths=(8,))
    c.model.encoder.update(stem="small", stem_width=8)
    fields = {"model.norm.groups": 4, "model.projector.widths": (12,)}
    fields |= {"model.region_projector.width": 12, "method.objective.queue": 4 * B}
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    c.update_from_flattened_dict(fields)
    return c


def pictures(n=B):
    """A batch with two noisy views of n colours, which any region shows."""
    rng, shape = np.random.default_rng(1), (n, SIZE, SIZE, 3)
    base = rng.normal(size=(n, 1, 1, 3))
    noisy = lambda: np.float32(base + 0.3 * rng.normal(size=shape))
    return {"views": (jnp.asarray(noisy()), jnp.asarray(noisy()))}


class Built(NamedTuple):
    """A method, the state that it starts from, and its loss, compiled."""

    config: ConfigDict
    network: Network
    method: Method
    state: TrainState
    loss: Callable  # (state, batch) -> (loss, Aux)
    graded: Callable  # (state, batch) -> ((loss, Aux), gradients)


@functools.cache
def built(kind, **changes):
    config = recipe(kind, **changes)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    variables = jax.jit(method.init)(jax.random.key(0), pictures(1))
    state = TrainState(jnp.int32(0), opt_state={}, **variables._asdict())
    of = lambda f: jax.jit(lambda state, batch: f(state.params, state, batch, RNG))
    graded = of(jax.value_and_grad(method.loss, has_aux=True))
    return Built(config, network, method, state, of(method.loss), graded)


def mixed(kind):
    """The mixtures of pictures() in a step with RNG."""
    key = jax.random.split(jax.random.fold_in(RNG, 1 << 30))[0]
    cuts = twin_boxes.boxes(gamma=1.0, groups=1)(key, SIZE, SIZE)
    mix = twin_boxes.mix_views if kind == "a1" else twin_boxes.mix_batch
    return mix(*pictures()["views"], *cuts)


# --- regions -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (33, 21), (7, 5), (3, 8)])
@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (1, 2), (7, 8)])
def test_pooling_is_the_mean_of_the_upsampled_map(size, grid):
    """Also where a map has more places than the image has pixels."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, *grid, 5)), jnp.float32)
    draw = jax.jit(twin_boxes.boxes(gamma=1.0, groups=3), static_argnums=(1, 2))
    (_, mask), _ = draw(jax.random.key(sum(size)), *size)
    full = jax.image.resize(x, (6, *size, 5), "bilinear", antialias=False)
    for region in (mask, 1 - mask):
        share = jnp.repeat(region, 2, axis=0)[..., None]  # [B, H, W, 1]
        mean = (full * share).sum(axis=(1, 2)) / share.sum(axis=(1, 2))
        np.testing.assert_allclose(region_mean(x, region), mean, atol=2e-6)


def test_pooling_is_float32_and_keeps_groups_apart():
    x = jnp.ones((4, 2, 2, 3), jnp.bfloat16).at[2:].set(5.0)
    mask = jnp.ones((2, 6, 6)).at[0, :3].set(0.0)
    found = region_mean(x, mask)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [[1.0] * 3] * 2 + [[5.0] * 3] * 2, rtol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (4, 8), (32, 32)])
@pytest.mark.parametrize("gamma", [1.0, 0.02])
def test_boxes_are_neither_empty_nor_full(size, gamma):
    """With a small gamma nearly all drawn shares are at an end of their range."""
    draw = jax.jit(twin_boxes.boxes(gamma=gamma, groups=2000), static_argnums=(1, 2))
    views = draw(jax.random.key(0), *size)
    for own, mask in views:
        hidden = np.prod(size) - mask.sum(axis=(1, 2))
        assert hidden.min() >= 1 and hidden.max() < np.prod(size)
        np.testing.assert_allclose(own, mask.mean(axis=(1, 2)), rtol=1e-6)


def test_boxes_have_equal_sides_and_places_of_their_own():
    """Away from the rim, where nothing is cut off."""
    draw = jax.jit(twin_boxes.boxes(gamma=1.0, groups=500), static_argnums=(1, 2))
    masks = [np.asarray(mask) for _, mask in draw(jax.random.key(0), 40, 40)]
    rim = [m[:, 0].min(1) * m[:, -1].min(1) * m[:, :, 0].min(1) for m in masks]
    free = rim[0] * masks[0][:, :, -1].min(1) * rim[1] * masks[1][:, :, -1].min(1) > 0
    sizes = [(1 - m[free]).sum(axis=(1, 2)) for m in masks]
    assert free.sum() > 20 and len(set(sizes[0])) > 5
    np.testing.assert_array_equal(*sizes)
    same = (masks[0][free] == masks[1][free]).all(axis=(1, 2))
    assert same.mean() < 0.2


def test_what_the_mixtures_show():
    x1, x2 = (jnp.arange(4.0)[:, None, None, None] + k for k in (0, 10))
    x1, x2 = (jnp.broadcast_to(x, (4, 8, 8, 1)) for x in (x1, x2))
    first, second = twin_boxes.boxes(gamma=1.0, groups=2)(jax.random.key(5), 8, 8)
    partners = {
        twin_boxes.mix_views: ([10, 11, 12, 13], [0, 1, 2, 3]),
        twin_boxes.mix_batch: ([1, 0, 3, 2], [11, 10, 13, 12]),
    }
    for mix, inside in partners.items():
        mixed = mix(x1, x2, first, second)
        for i, own in enumerate((x1, x2)):
            drawn = (first, second)[i][1]
            np.testing.assert_array_equal(mixed[i].mask[..., 0], drawn)
            mask = jnp.repeat(mixed[i].mask, 2, axis=0)
            other = jnp.float32(jnp.asarray(inside[i]))[:, None, None, None]
            expected = jnp.where(mask == 1, own, other)
            np.testing.assert_array_equal(mixed[i].images, expected)
            share = mask.mean(axis=(1, 2, 3))
            np.testing.assert_allclose(mixed[i].lam, share, rtol=1e-6)
        assert (first[1] != second[1]).any()


# --- terms ---------------------------------------------------------------------------

NUMBERS = Objective(  # compares numbers so that the result tells them apart
    init=None,
    predict=lambda outputs, memory, rng: outputs["projection"],
    target=lambda outputs, memory, rng, view: outputs["projection"],
    compare=lambda q, k, queue: (q * (k + 100 * queue))[:, 0],
    remember=None,
)
QUERY = {"full": [1, 2, 3], "mixed": [5, 7, 11], "outside": [13, 17, 19]}
QUERY["inside"] = [23, 29, 31]
KEY = {"full": [0.1, 0.2, 0.7], "outside": [0.3, 0.6, 0.9], "inside": [0.4, 0.5, 0.8]}
MEMORY = {"main": 2.0, "local": 3.0, "global": 5.0}
LAM = np.array([0.2, 0.2, 0.2])


def total_of(terms):
    wrap = lambda values: {"projection": jnp.asarray(values, jnp.float32)[:, None]}
    query, key = ({k: wrap(v) for k, v in x.items()} for x in (QUERY, KEY))
    partner = jnp.array([[2, 1, 0]])
    return region_terms.total(
        NUMBERS, terms, query, key, MEMORY, jnp.asarray(LAM), partner
    )


def pair(query, key, queue, turned=""):
    """Mean of one term by hand."""
    q, k = np.array(QUERY[query], float), np.array(KEY[key])
    q, k = q[::-1] if turned else q, k[::-1] if turned == "both" else k
    return (q * (k + 100 * MEMORY[queue])).mean()


def test_weights_of_approach_1():
    """Equation 7."""
    loss, found = total_of(region_terms.terms_of(1, "none", "region"))
    regions = pair("inside", "outside", "global") + pair("inside", "inside", "local")
    regions += pair("outside", "outside", "global")
    expected = pair("full", "full", "main") + 0.2 * pair("mixed", "full", "main")
    np.testing.assert_allclose(loss, expected + 0.8 * regions, rtol=1e-6)
    local_global = pair("inside", "outside", "global")
    np.testing.assert_allclose(found["loss_local_global"], local_global, rtol=1e-6)


@pytest.mark.parametrize(
    "reverse, turned", [("paper", "query"), ("consistent", "both")]
)
@pytest.mark.parametrize(
    "positive, whole", [("key", ("full", "main")), ("region", ("outside", "global"))]
)
def test_weights_of_approach_2(reverse, turned, positive, whole):
    """Equation 8; the mixture's own reversed term has its keys as they are."""
    loss, _ = total_of(region_terms.terms_of(2, reverse, positive))
    normal = pair("mixed", "full", "main") + pair("outside", *whole)
    normal += pair("inside", "inside", "local")
    back = pair("mixed", "full", "main", "query") + pair("outside", *whole, turned)
    back += pair("inside", "inside", "local", turned)
    expected = pair("full", "full", "main") + 0.2 * normal + 0.8 * back
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_constant_lam():
    one = built("three", method__lam="0.25")
    loss, aux = one.loss(one.state, pictures())
    term = lambda name: aux.metrics[f"loss_{name}"]
    names = ("mixed", "global_global", "local_local")
    expected = term("clean") + sum(
        0.25 * term(name) + 0.75 * term(f"{name}_reversed") for name in names
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert aux.metrics["lam"] == 0.25


def test_lam_is_the_share_outside_the_first_box():
    one = built("paper")
    _, aux = one.loss(one.state, pictures())
    first, second = mixed("paper")
    np.testing.assert_allclose(aux.metrics["lam"], first.mask.mean(), rtol=1e-6)
    assert first.mask.mean() != second.mask.mean()


def test_orders_differ_in_the_reversed_region_terms_alone():
    kinds = [built("paper"), built("consistent")]
    one, two = (k.loss(k.state, pictures())[1].metrics for k in kinds)
    names = {k for k in one if k.startswith("loss_")}
    turned = {"loss_global_global_reversed", "loss_local_local_reversed"}
    assert {k for k in names if abs(one[k] - two[k]) > 1e-4} == turned
    for name in turned:
        straight = two[name.removesuffix("_reversed")]
        np.testing.assert_allclose(two[name], straight, rtol=1e-5)


# --- the teacher, the queues ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["a1", "paper"])
def test_every_part_learns(kind):
    one = built(kind)
    _, grads = one.graded(one.state, pictures())
    for part, tree in grads.items():
        size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
        assert size > 1e-4, part


def test_no_gradient_to_the_teacher_and_the_queues():
    one = built("a1")

    def loss(teacher, queues):
        memory = {k: {**one.state.memory[k], "queue": q} for k, q in queues.items()}
        state = one.state.replace(teacher=teacher, memory=memory)
        value, aux = one.method.loss(state.params, state, pictures(), RNG)
        rows = [m["queue"] for m in aux.carry["memory"].values()]
        stats = jax.tree.leaves(aux.carry["stats"])
        return value, sum(x.sum() for x in rows + stats)

    queues = {k: m["queue"] for k, m in one.state.memory.items()}
    of_loss, of_carry = jax.jit(jax.jacrev(loss, argnums=(0, 1)))(
        one.state.teacher, queues
    )
    assert not any(g.any() for g in jax.tree.leaves((of_loss[0], of_carry)))


@pytest.mark.parametrize("kind", ["a1", "paper"])
def test_statistics_are_of_views_and_then_of_mixtures(kind):
    one = built(kind, method__shuffle=False)
    state, (x1, x2) = one.state, pictures()["views"]

    @jax.jit
    def after(params, stats, *batches):
        for x in batches:
            _, stats = one.network.run(
                params, stats, {"images": x}, ["encoder"], train=True
            )
        return stats

    _, aux = one.loss(state, pictures())
    first, second = mixed(kind)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    expected = after(state.params, state.stats, x1, first.images)
    jax.tree.map(close, aux.stats, expected)
    new = one.method.update(state.replace(step=jnp.int32(1)), aux.carry).teacher
    expected = after(*state.teacher.values(), x2, second.images)
    jax.tree.map(close, new["stats"], expected)


def test_only_clean_views_are_shuffled():
    """Batch norms of four groups: another order makes other keys."""
    kinds = [built("a1"), built("a1", method__shuffle=False)]
    one, two = (k.loss(k.state, pictures())[1].carry["memory"] for k in kinds)
    gap = {k: float(abs(one[k]["queue"] - two[k]["queue"]).max()) for k in one}
    assert gap["main"] > 1e-3 and gap["local"] == gap["global"] == 0


@pytest.mark.parametrize("kind, count", [("a1", 3), ("paper", 2)])
def test_queues_advance(kind, count):
    """Keys of whole images, insides and outsides, each in a queue of its own."""
    one = built(kind, method__shuffle=False)
    state, second = one.state, mixed(kind)[1]
    assert len(state.memory) == count

    @jax.jit
    def taught(x):
        params = state.params | state.teacher["params"]
        return one.network.apply(params, state.teacher["stats"], x, train=True)[0]

    regions, mask = taught(second.images)["region_map"], second.mask[..., 0]
    rows = {"main": taught(pictures()["views"][1])["projection"]}
    rows |= {"local": region_mean(regions, 1 - mask)}
    rows |= {"global": region_mean(regions, mask)}
    before = state
    for step in range(5):
        _, aux = one.loss(before, pictures())
        new = one.method.update(before.replace(step=before.step + 1), aux.carry)
        at = step * B % (4 * B)
        assert aux.metrics["queue_age"] == min(step, 4)
        for name, memory in new.memory.items():
            written = memory["queue"][at : at + B]
            np.testing.assert_allclose(written, unit(rows[name]), atol=1e-5)
            assert memory["pointer"] == (at + B) % (4 * B)
        # With the same teacher again, so that the rows are those above.
        before = new.replace(teacher=state.teacher)


def test_the_teacher_follows():
    one = built("paper")
    _, aux = one.loss(one.state, pictures())
    moved = jax.tree.map(lambda p: p + 1.0, one.state.params)
    state = one.state.replace(step=jnp.int32(1), params=moved)
    teacher = one.method.update(state, aux.carry).teacher["params"]
    assert teacher.keys() == {"encoder", "projector"}
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    for part, tree in teacher.items():
        jax.tree.map(lambda t, p: close(t, p + 0.01), tree, one.state.params[part])


# --- as a whole ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a1", "consistent"])
def test_it_learns_and_compiles_once(kind):
    """Finite, falling once the queues hold keys of pictures, one trace."""
    one, batch = built(kind), pictures()
    rate = lambda step: jnp.float32(0.1)
    optimizer = optimizers.make(one.config.optim, rate, one.state.params, clock=CLOCK)
    state = one.state.replace(opt_state=optimizer.init(one.state.params))
    same = lambda batch, resident, rng: batch
    step = train_step.make_step(one.method, optimizer, rate, same, one.config)
    traced, found = [], []

    @jax.jit
    def counted(state, batch):
        traced.append(1)
        return step(state, batch, {})

    for _ in range(80):
        state, metrics = counted(state, batch)
        found.append(metrics)
    course = lambda name: np.array([float(m[name]) for m in found])
    assert len(traced) == 1 and np.isfinite(course("loss")).all()
    clean, local = course("loss_clean"), course("loss_local_local")
    assert clean[10:15].mean() < clean[4:9].mean() - 0.2
    assert local[-5:].mean() < local[15:20].mean() - 0.4


@pytest.mark.parametrize("kind, groups", [("a1", 8), ("paper", 1)])
def test_eight_devices_agree_with_one(kind, groups):
    fields = {"method__mixture__groups": groups, "model__norm__groups": 8}
    one, batch = built(kind, **fields), pictures(32)
    alone = one.graded(one.state, batch)
    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    shardings = {"in_shardings": (everywhere, cut), "out_shardings": everywhere}
    spread = jax.jit(one.graded, **shardings)(one.state, jax.device_put(batch, cut))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone[0][0], spread[0][0], rtol=1e-5)


def test_features():
    one, x = built("paper"), pictures()["views"][0]
    blank = {k: v for k, v in one.state.params.items() if k != "region_projector"}
    state = one.state.replace(params=blank)
    whole = jax.jit(functools.partial(one.network.apply, train=False))
    outputs, _ = whole(one.state.params, one.state.stats, x)
    for name in ("projection", "features"):
        config = recipe("paper", method__evaluate=name).method
        method = methods.make(config, one.network, clock=CLOCK)
        found = jax.jit(method.features)(state, x)
        np.testing.assert_allclose(found, outputs[name], atol=1e-6)


@pytest.mark.parametrize("kind, views", [("a1", 2), ("paper", 1)])
def test_show_paints(kind, views):
    """Evaluation has one view; it stands for both."""
    one = built(kind)
    few = {"views": tuple(x[:4] for x in pictures()["views"][:views])}
    panels = jax.jit(one.method.show)(one.state, few, RNG)
    assert ("input" in panels) == (views == 1)
    x1, x2 = (few["views"] * 2)[:2]
    partners = {"a1": (x2, x1), "paper": (x1[::-1], x2[::-1])}[kind]
    first, numbers = panels["mixture 1"]
    for number, images, own, other in (
        (1, first, x1, partners[0]),
        (2, panels["mixture 2"], x2, partners[1]),
    ):
        share = panels[f"mixture {number}: own share"]
        assert 0 < share[0].mean() < 1
        expected = jnp.where(share[..., None] == 1, own, other)
        np.testing.assert_array_equal(images, expected)
    lam = panels["mixture 1: own share"].mean(axis=(1, 2))
    np.testing.assert_allclose(numbers["lam"], lam, rtol=1e-6)


# --- bad input -----------------------------------------------------------------------

WRONG = {
    "method.approach=3 must be 1 or 2": ("paper", {"approach": 3}),
    r"method.region_reverse with approach=1: 'paper' .* none": (
        "a1",
        {"region_reverse": "paper"},
    ),
    r"method.region_reverse with approach=2: 'papr'.*'paper'": (
        "paper",
        {"region_reverse": "papr"},
    ),
    r"method.global_positive with approach=1: 'key' .* region": (
        "a1",
        {"global_positive": "key"},
    ),
    r"method.lam='aera' must be 'area' or a number": ("paper", {"lam": "aera"}),
    r"method.lam='1.5' must be": ("paper", {"lam": "1.5"}),
    r"method.lam='nan' must be": ("paper", {"lam": "nan"}),
    r"method.objective.name 'simclr' .* moco": ("paper", {"objective.name": "simclr"}),
    r"objective.queue=0": ("paper", {"objective.queue": 0}),
    r"mixture.gamma=0.0": ("paper", {"mixture.gamma": 0.0}),
    r"mixture.groups=0": ("paper", {"mixture.groups": 0}),
    r"method.evaluate 'map'": ("paper", {"evaluate": "map"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_fields_that_do_not_fit(message):
    kind, changes = WRONG[message]
    config = recipe(kind)
    config.method.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=message):
        methods.make(config.method, models.make(config.model), clock=CLOCK)


def test_networks_and_data_that_do_not_fit():
    def born(config, views=2):
        batch = {"views": (pictures()["views"] * 2)[:views]}
        method = methods.make(config.method, models.make(config.model), clock=CLOCK)
        return jax.eval_shape(method.init, jax.random.key(0), batch)

    with pytest.raises(UsageError, match="two, not 3"):
        born(recipe("paper"), 3)
    with pytest.raises(UsageError, match="two, not 1"):
        born(recipe("a1"), 1)
    narrow = recipe("paper", model__region_projector__width=5)
    with pytest.raises(UsageError, match="width=5 must be the 12 of model.projector"):
        born(narrow)
    born(recipe("three", model__region_projector__width=5))
    for part in ("projector", "region_projector"):
        config = recipe("paper")
        del config.model[part]
        with pytest.raises(UsageError, match=f"needs model.{part}\\."):
            born(config)
    config = recipe("paper")
    config.model.encoder = common.vit("Ti", (SIZE, SIZE), 8)
    with pytest.raises(UsageError, match="needs an encoder with a map"):
        born(config)
    for changes, message in (
        ({"method__mixture__groups": 3}, "mixture.groups=3 .* batch of 16"),
        ({"method__objective__queue": 24}, "queue=24 is not a multiple of the 16"),
    ):
        config = recipe("paper", **changes)
        method = methods.make(config.method, models.make(config.model), clock=CLOCK)
        shapes = jax.eval_shape(method.init, RNG, pictures(1))
        state = TrainState(jnp.int32(0), opt_state={}, **shapes._asdict())
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(method.loss, state.params, state, pictures(), RNG)
