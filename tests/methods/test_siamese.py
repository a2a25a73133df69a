"""Siamese methods: every framework learns with every mixture, and their bookkeeping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, mixtures, models
from mixjax.errors import UsageError
from mixjax.mixtures import pairs
from mixjax.objectives import branches
from mixjax.objectives.branches import Branch
from mixjax.optim import optimizers
from mixjax.sharding import meshes
from mixjax.state import ALL, Clock, TrainState
from mixjax.training import initial_state, train_step
from tests.support import linear_network, tiny

CLOCK = Clock(100, 100)
CELLS = [  # every framework and every mixture; all pairs: python bench/matrix.py
    ("moco_sym", "both", ""),
    ("simclr", "mixmask", ""),
    ("swav", "unmix", ""),
    ("byol", "unmix", "branches=both"),
    ("simsiam", "erase", ""),
    ("wmse4", "none", ""),
]


@functools.cache
def built(framework, mixture, more):
    """(config, method, batch of random pictures, state) of a tiny recipe."""
    config = tiny.siamese(framework, mixture, more)
    config.schedule.base = 0.05 if config.optim.name == "sgd" else config.schedule.base
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    views = len(config.data.views)
    keys = jax.random.split(jax.random.key(1), views + 1)
    base = jax.random.normal(keys[0], (32, 4, 4, 1))
    base = jax.image.resize(base, (32, 16, 16, 1), "linear")
    noise = [0.3 * jax.random.normal(k, base.shape) for k in keys[1:]]
    batch = {"views": tuple(base + n for n in noise), "index": jnp.arange(32)}
    params = jax.eval_shape(method.init, jax.random.key(0), batch).params
    optimizer = optimizers.make(config.optim, lambda step: 0.0, params, clock=CLOCK)
    state = jax.jit(initial_state.make_init(method, optimizer, batch))(
        jax.random.key(0)
    )
    return config, method, batch, state


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_it_learns_and_compiles_once(cell):
    config, method, batch, state = built(*cell)
    rates = {"adam": 3e-3, "sgd": 0.03, "larc": 1.0}
    rate = lambda step: jnp.float32(rates[config.optim.name])
    config.optim.freeze_rules, config.optim.lr_rules = (), ()
    optimizer = optimizers.make(config.optim, rate, state.params, clock=CLOCK)
    state = state.replace(opt_state=optimizer.init(state.params))
    same = lambda batch, resident, rng: batch
    step = train_step.make_step(method, optimizer, rate, same, config)
    traced = []

    @jax.jit
    def counted(state, batch):
        traced.append(1)
        return step(state, batch, {})

    losses = []
    for _ in range(20):
        state, metrics = counted(state, batch)
        losses.append(float(metrics["loss"]))
    assert len(traced) == 1
    assert np.isfinite(losses).all()
    # MoCo's loss rises while its first keys push the random ones out of the queue.
    assert np.mean(losses[-4:]) < np.mean(losses[3:7])
    if "queue" in state.memory and "pointer" in state.memory:
        each = 64 if config.method.pairing.pairs == "all" else 32
        assert int(state.memory["pointer"]) == 20 * each % 64
    assert method.together == ALL


@pytest.mark.parametrize("cell", CELLS[:2], ids="-".join)
def test_eight_devices_agree_with_one(cell):
    _, method, batch, state = built(*cell)

    def run(state, batch):
        both = jax.value_and_grad(method.loss, has_aux=True)
        (loss, aux), grads = both(state.params, state, batch, jax.random.key(3))
        return loss, aux.metrics, aux.carry, aux.stats, grads

    alone = jax.jit(run)(state, batch)
    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    shardings = {"in_shardings": (everywhere, cut), "out_shardings": everywhere}
    spread = jax.jit(run, **shardings)(state, jax.device_put(batch, cut))
    np.testing.assert_allclose(alone[0], spread[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        scale = np.abs(a).max(initial=1e-2)
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * scale)


@pytest.mark.parametrize("cell", [CELLS[0], CELLS[4]], ids="-".join)
def test_features_and_pictures(cell):
    config, method, batch, state = built(*cell)
    found = jax.jit(method.features)(state, batch["views"][0])
    assert found.dtype == jnp.float32
    assert found.shape == (32, 8 if config.method.evaluate == "projection" else 16)
    one = {"views": batch["views"][:1], "index": batch["index"]}
    panels = jax.jit(method.show)(state, one, jax.random.key(0))
    assert len(panels) >= 3


@pytest.mark.parametrize("cell", [("moco", "both"), ("swav", "unmix")], ids="-".join)
def test_kill_and_resume_is_bit_equal(tmp_path, cell):
    """Queues, teacher, prototypes, statistics and the mixtures' draws continue."""
    config = tiny.siamese(*cell, steps=6, checkpoint__every_epochs=1e9)
    whole = tiny.run(tmp_path / "whole", config)
    tiny.run(tmp_path / "parts", config, tiny.StopAt(4))
    parts = tiny.run(tmp_path / "parts", config)
    tiny.assert_same_run(whole, parts, 6)


# --- batch statistics ----------------------------------------------------------------


def statistics(state, method, batch):
    return jax.jit(method.loss)(state.params, state, batch, jax.random.key(3))[1].stats


def test_views_and_mixtures_have_batch_statistics_of_their_own(monkeypatch):
    """x1, then its mixture, then x2: three updates of the running statistics."""
    config, _, batch, state = built("moco_sym", "both", "")
    halved = lambda rng, x: (pairs_of(x, 0.5),)
    monkeypatch.setattr(mixtures, "make", lambda config: {"half": halved})
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    found = statistics(state, method, batch)
    wanted = state.stats
    x1, x2 = batch["views"]
    for x in (x1, pairs_of(x1, 0.5).images, x2):
        _, wanted = network.run(
            state.params, wanted, {"images": x}, network.parts, train=True
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), found, wanted
    )


def test_swav_has_one_batch_of_them_all():
    config, method, batch, state = built("swav", "unmix", "")
    network = models.make(config.model)
    found = statistics(state, method, batch)
    mean = lambda stats: stats["encoder"]["batch_stats"]["bn1"]["mean"]
    # One update with momentum 0.9 of the mean over two views and the mixture, which
    # has the mean of the first view, or of its partners, which are the same images.
    each = []
    for x in (batch["views"][0], batch["views"][1]):
        _, stats = network.run(
            state.params, state.stats, {"images": x}, ["encoder"], train=True
        )
        each.append(mean(stats))
    assert not np.allclose(mean(found), each[1] * 0.9 + each[0], atol=1e-6)
    spread = np.abs(each[0] - each[1]).max() + 0.1 * np.abs(each[0]).max()
    assert np.abs(mean(found) - (each[0] + each[1]) / 2).max() < spread


def test_shuffling_changes_nothing_with_one_group():
    config, _, batch, state = built("moco_sym", "both", "")
    config = config.copy_and_resolve_references()
    config.model.norm.groups = 1
    network = models.make(config.model)
    images = {Branch(1, 0): batch["views"][1]}
    teach = lambda shuffle: branches.teach(
        network, state.teacher, images, shuffle, jax.random.key(5)
    )
    plain, mixed = teach(False), teach(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(mixed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    config.model.norm.groups = 8
    network = models.make(config.model)
    apart = teach(True)[0][Branch(1, 0)]["projection"]
    assert np.abs(apart - mixed[0][Branch(1, 0)]["projection"]).max() > 1e-2


# --- bookkeeping, with a linear network ----------------------------------------------


def pairs_of(x, lam):
    """A mixture of everybody with its mirror image in the batch, by `lam`."""
    flip = pairs.draw_partner(jax.random.key(0), len(x), "reverse")[None]
    mask = jnp.full((1, *x.shape[1:3]), lam)
    return pairs.mix(x, jnp.full(1, lam), mask, flip, "reverse")


def linear_moco(monkeypatch, symmetric, lam=None):
    """(method, state, batch) of MoCo on a linear network, 8 pictures of 4 pixels."""
    blends = {} if lam is None else {"m": lambda rng, x: (pairs_of(x, lam),)}
    monkeypatch.setattr(mixtures, "make", lambda config: blends)
    pairing = dict(pairs="forward", targets=2, reduce="sum", branches="one")
    pairing |= dict(mixed_as="online", against=(1,), reverse="both")
    if symmetric:
        pairing |= {"pairs": "all", "against": (1, 0)}
    config = dict(name="siamese", pairing=pairing, shuffle=True, evaluate="projection")
    config |= dict(objective=dict(name="moco", queue=48, temperature=0.2))
    config |= dict(join={"encoder": "none", "heads": "none"}, mixtures={})
    config |= dict(teacher=dict(momentum=0.9, rule="constant", per="step"))
    network = linear_network.network(image_size=(2, 2), channels=3, width=5)
    method = methods.make(config | {"mixed_objective": {}}, network, clock=CLOCK)
    keys = jax.random.split(jax.random.key(7), 4)
    views = tuple(jax.random.normal(k, (8, 2, 2, 3)) for k in keys[:2])
    batch = {"views": views, "index": jnp.arange(8)}
    variables = method.init(jax.random.key(0), batch)
    kernel = lambda key: {
        "kernel": jax.random.normal(key, (12, 5)),
        "bias": jnp.ones(5),
    }
    params = {"encoder": {}, "projector": {"fc1": kernel(keys[2])}}
    teacher = {"params": {"encoder": {}, "projector": {"fc1": kernel(keys[3])}}}
    teacher["stats"] = {}
    zero = jnp.int32(0)
    return method, TrainState(zero, params, {}, {}, teacher, variables.memory), batch


def embed(params, x):
    """The network in NumPy: unit projections."""
    fc = jax.tree.map(np.float64, params["projector"]["fc1"])
    z = (
        np.float64(x).transpose(0, 3, 1, 2).reshape(len(x), -1) @ fc["kernel"]
        + fc["bias"]
    )
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def contrast(q, k, queue):
    """MoCo's loss in NumPy, from its definition."""
    positive = np.exp((q * k).sum(axis=1) / 0.2)
    rest = np.exp(q @ np.float64(queue).T / 0.2).sum(axis=1)
    return -np.log(positive / (positive + rest)).mean()


@pytest.mark.parametrize("symmetric", [False, True])
def test_three_steps_of_moco(monkeypatch, symmetric):
    """Negatives from before, clean keys enqueued in order, and who follows whom."""
    method, state, batch = linear_moco(monkeypatch, symmetric, lam=0.25)
    optimizer = optimizers.make(
        {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "decay_vectors": True}
        | {"nesterov": False}
        | {"decay_exempt": (), "lr_rules": (), "freeze_rules": (), "unit_rules": ()}
        | {"layer_decay": 1.0, "layers": ()}
        | {"clip_norm": 0.0},
        lambda step: 0.1,
        state.params,
        clock=CLOCK,
    )
    state = state.replace(opt_state=optimizer.init(state.params))
    same = lambda batch, resident, rng: batch
    config = tiny.siamese("moco")
    config.accumulate = 1
    step = jax.jit(train_step.make_step(method, optimizer, lambda s: 0.1, same, config))
    x1, x2 = batch["views"]
    m = pairs_of(x1, 0.25).images
    pointer = 0
    for _ in range(3):
        queue = np.array(state.memory["queue"])
        q1, q2, qm = (embed(state.params, x) for x in (x1, x2, m))
        k1, k2 = (embed(state.teacher["params"], x) for x in (x1, x2))
        wanted = contrast(q1, k2, queue)
        wanted += 0.25 * contrast(qm, k2, queue) + 0.75 * contrast(qm[::-1], k2, queue)
        if symmetric:
            wanted += contrast(q2, k1, queue) + 0.25 * contrast(qm, k1, queue)
            wanted += 0.75 * contrast(qm[::-1], k1, queue)
        before, (state, metrics) = state, step(state, batch, {})
        np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
        rows = np.concatenate([k1, k2]) if symmetric else k2
        queue[pointer : pointer + len(rows)] = rows
        pointer = (pointer + len(rows)) % 48
        np.testing.assert_allclose(state.memory["queue"], queue, atol=1e-6)
        assert int(state.memory["pointer"]) == pointer
        follow = lambda t, p: 0.9 * t + 0.1 * p
        after = jax.tree.map(follow, before.teacher["params"], state.params)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-6),
            state.teacher["params"],
            after,
        )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_mixture_of_one_image(monkeypatch, symmetric, lam):
    """lam 1: m is x1; lam 0: m is x1 reversed. Either way the loss once more."""
    method, state, batch = linear_moco(monkeypatch, symmetric, lam)
    found, aux = method.loss(state.params, state, batch, jax.random.key(0))
    x1, x2 = batch["views"]
    q1, q2 = (embed(state.params, x) for x in (x1, x2))
    k1, k2 = (embed(state.teacher["params"], x) for x in (x1, x2))
    queue = state.memory["queue"]
    forward = contrast(q1, k2, queue)
    wanted = 2 * forward
    if symmetric:
        wanted += contrast(q2, k1, queue) + contrast(q1, k1, queue)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert float(aux.metrics["lam_m"]) == lam


def test_no_gradient_enters_the_teacher_or_its_queue(monkeypatch):
    method, state, batch = linear_moco(monkeypatch, True, 0.3)

    def loss(teacher, queue):
        memory = state.memory | {"queue": queue}
        changed = state.replace(teacher=teacher, memory=memory)
        return method.loss(state.params, changed, batch, jax.random.key(0))[0]

    grads = jax.grad(loss)(state.teacher, state.memory["queue"])
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_what_is_refused():
    config = tiny.siamese("moco", "unmix")
    network = models.make(config.model)
    for field, value, message in (
        ("pairing.pairs", "al", "method.pairing.pairs 'al'.*'all'"),
        ("mixtures.unmix.name", "unmx", "mixtures.unmix.name 'unmx'.*'unmix'"),
        ("objective.name", "mocco", "objective.name 'mocco'.*'moco'"),
        ("evaluate", "feature", "method.evaluate 'feature'.*'features'"),
    ):
        changed = config.method.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: value})
        with pytest.raises(UsageError, match=message):
            methods.make(changed, network, clock=CLOCK)
    bare = config.model.copy_and_resolve_references()
    del bare.projector
    one = {"views": (jnp.zeros((1, 16, 16, 1)),) * 2, "index": jnp.zeros(1, jnp.int32)}
    method = methods.make(config.method, models.make(bare), clock=CLOCK)
    with pytest.raises(UsageError, match="needs a section model.projector"):
        jax.eval_shape(method.init, jax.random.key(0), one)
    bare.predictor = config.model.projector
    with pytest.raises(UsageError, match="model.predictor needs a section"):
        models.make(bare)
    method = methods.make(config.method, network, clock=CLOCK)
    one = {"views": (jnp.zeros((1, 16, 16, 1)),), "index": jnp.zeros(1, jnp.int32)}
    with pytest.raises(UsageError, match="needs at least two"):
        jax.eval_shape(method.init, jax.random.key(0), one)
