"""Siamese objectives against MoCo, HTDT, solo-learn and SwAV: losses, queues.

Not compared here: momentum updates of weights, which are a method's, and running
statistics of the whitening, which nothing uses.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from mixjax.objectives import cosine, moco, simclr, swav, wmse
from mixjax.objectives.contrast import unit
from mixjax.state import Clock

RNG = jax.random.key(0)
CLOCK = Clock(total_steps=100, steps_per_epoch=10)
of = functools.partial


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def compare(objective, view, other, memory, i=0, j=1):
    """The mean loss of predicting view j from view i; views: outputs by view."""
    prediction = objective.predict(view, memory, RNG)
    target = objective.target(other, memory, RNG, j)
    return objective.compare(prediction, target, memory).mean()


def both(objective, views, memory):
    """The sum over the two directions."""
    pairs = itertools.permutations(range(2))
    return sum(compare(objective, views[i], views[j], memory, i, j) for i, j in pairs)


def graded(function, *arrays):
    """Value and gradients for all arguments."""
    grad = jax.value_and_grad(function, argnums=tuple(range(len(arrays))))
    return jax.jit(grad)(*arrays)


# --- MoCo --------------------------------------------------------------------------


def keys_of(raw):
    return [{"projection": jnp.asarray(x)} for x in raw]


def test_moco_loss(reference):
    ref = reference("info_nce_moco")
    queue = ref["in/queue"].T
    objective = moco.make(queue=len(queue), temperature=ref["hp/T"])
    memory = {"queue": queue, "pointer": jnp.int32(ref["in/queue_ptr"])}

    def loss(q, k):
        return compare(objective, *keys_of([q, k]), memory)

    raw = ref["in/q_raw"], ref["in/k_raw"]
    value, (grad, other) = graded(loss, *raw)
    ref.check("loss", value)
    ref.check("grad_q_raw", grad)
    assert not other.any()
    logits = jax.jit(of(moco.logits, temperature=ref["hp/T"]))
    ref.check("logits", logits(*map(unit, raw), queue))


def test_moco_queue(reference):
    ref = reference("info_nce_moco")
    objective = moco.make(queue=ref["in/queue"].shape[1], temperature=ref["hp/T"])
    start = {"queue": ref["in/queue"].T, "pointer": jnp.int32(ref["in/queue_ptr"])}
    remember = jax.jit(objective.remember)
    once = remember(start, keys_of([ref["in/k_raw"]]))
    ref.check("queue_after", once["queue"].T)
    ref.check("queue_ptr_after", once["pointer"].reshape(1))
    memory, pointers = start, []
    for keys in ref["in/keys_steps"]:
        memory = remember(memory, keys_of([keys]))
        pointers.append(memory["pointer"])
    ref.check("queue_after_steps", memory["queue"].T)
    ref.check("queue_ptr_steps", jnp.stack(pointers))


def test_moco_v3(reference):
    ref = reference("info_nce_moco")
    objective = moco.make(queue=0, temperature=ref["hp/v3_T"])

    def loss(q, k):
        return compare(objective, *keys_of([q, k]), {})

    value, (grad, other) = graded(loss, ref["in/q_raw"], ref["in/k_raw"])
    ref.check("v3_loss", value)
    ref.check("v3_grad_q_raw", grad)
    assert not other.any()


# --- SimCLR, BYOL, SimSiam -----------------------------------------------------------


def test_simclr(reference):
    ref = reference("simclr_ntxent")
    objective = simclr.make(temperature=ref["hp/temperature"], candidates="both")

    def loss(*views):
        return both(objective, keys_of(views), {}) / 2

    value, grads = graded(loss, ref["in/z0"], ref["in/z1"])
    ref.check("loss", value)
    ref.check("loss", value, ref.arrays["out/loss_solo_learn"])
    for i, grad in enumerate(grads):
        ref.check(f"grad_z{i}", grad)


def branches(p0, p1, z0, z1):
    pairs = ((p0, z0), (p1, z1))
    return [
        {"prediction": jnp.asarray(p), "projection": jnp.asarray(z)} for p, z in pairs
    ]


def test_byol(reference):
    ref = reference("byol_loss")
    objective = cosine.make(loss="distance")
    arrays = [ref[f"in/{n}"] for n in ("pred0", "pred1", "target0", "target1")]
    value, grads = graded(lambda *a: both(objective, branches(*a), {}), *arrays)
    ref.check("loss", value)
    ref.check("loss", value, ref.arrays["out/loss_solo_learn_sum"])
    ref.check("grad_pred0", grads[0])
    ref.check("grad_pred1", grads[1])
    assert not grads[2].any() and not grads[3].any()
    one = jax.jit(lambda *a: compare(objective, *branches(*a), {}))(*arrays)
    ref.check("norm_mse_p0_t1", one)


def test_simsiam(reference):
    ref = reference("simsiam_loss")
    objective = cosine.make(loss="negative")
    arrays = [ref[f"in/{n}"] for n in ("p1", "p2", "z1", "z2")]
    value, grads = graded(lambda *a: both(objective, branches(*a), {}) / 2, *arrays)
    ref.check("loss", value)
    ref.check("grad_p1", grads[0])
    ref.check("grad_p2", grads[1])
    assert not grads[2].any() and not grads[3].any()
    one = jax.jit(lambda *a: compare(objective, *branches(*a), {}))(*arrays)
    ref.check("neg_cos_p1_z2", one)
    ref.check("neg_cos_p1_z2", one, ref.arrays["out/neg_cos_p1_z2_plain"])


# --- W-MSE ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss, name", [("distance", "norm"), ("mse", "mse")])
def test_wmse(reference, loss, name):
    ref = reference("wmse_whitening")
    assert len(ref["in/perms"]) == ref["hp/w_iter"]
    objective = wmse.build(
        lambda rng, batch: jnp.asarray(ref["in/perms"]),
        size=int(ref["hp/w_size"]),
        eps=ref["hp/eps"],
        loss=loss,
    )

    def mean(*views):
        return both(objective, keys_of(views), {}) / 2

    value, grads = graded(mean, ref["in/h0"], ref["in/h1"])
    ref.check(f"loss_{name}", value)
    for i, grad in enumerate(grads):
        ref.check(f"grad_h{i}_{name}", grad)


def test_whitening(reference):
    ref = reference("wmse_whitening")
    whiten = jax.jit(of(wmse.whiten, eps=ref["hp/eps"]))
    ref.check("whitened_h0", whiten(ref["in/h0"][None])[0])


# --- SwAV ----------------------------------------------------------------------------


def swav_outputs(embeddings, prototypes, shift):
    """Outputs by view, of unit prototypes [K, d].

    shift: 0, added to the scores to have their gradient.
    """
    scores = embeddings @ prototypes.T + shift
    return [
        {"embedding": e, "prototypes": prototypes.T, "scores": s}
        for e, s in zip(jnp.split(embeddings, 2), jnp.split(scores, 2), strict=True)
    ]


@pytest.mark.parametrize("suffix", ["", "_queue"])
def test_swav(reference, suffix):
    ref = reference("swav_sinkhorn")
    prototypes = unit(ref["params/prototypes.weight"])
    ref.check("prototypes_normalized", prototypes)
    arrays = ref["in/embeddings"], prototypes, jnp.zeros(ref["out/scores"].shape)
    queue = ref["in/queue"]
    objective = swav.make(
        temperature=ref["hp/temperature"],
        epsilon=ref["hp/epsilon"],
        iterations=int(ref["hp/sinkhorn_iterations"]),
        queue=queue.shape[1] if suffix else 0,
        queue_start_epochs=0,
        clock=CLOCK,
    )
    memory = {"queue": jnp.asarray(queue), "steps": jnp.int32(0)} if suffix else {}
    views = swav_outputs(*arrays)
    ref.check("scores", jnp.concatenate([view["scores"] for view in views]))
    for i, view in enumerate(views):
        code = jax.jit(objective.target, static_argnums=3)(view, memory, RNG, i)
        ref.check(f"assign{i}{suffix}", code)

    def loss(*arrays):
        return both(objective, swav_outputs(*arrays), memory) / 2

    value, grads = graded(loss, *arrays)
    ref.check(f"loss{suffix}", value)
    if not suffix:
        ref.check("loss", value, ref.arrays["out/loss_solo_learn"])
    for name, grad in zip(("embeddings", "prototypes", "scores"), grads, strict=True):
        ref.check(f"grad_{name}{suffix}", grad)


def test_swav_queue(reference):
    ref = reference("swav_sinkhorn")
    halves = jnp.stack(jnp.split(jnp.asarray(ref["in/embeddings"]), 2))
    ref.check("queue_after", jax.jit(swav.push)(ref["in/queue"], halves))
