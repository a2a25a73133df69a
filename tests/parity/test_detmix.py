"""Lam's pre-training against p-lam/mix-ssl, and a float64 reference of its formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.methods import detmix
from mixjax.mixtures import twin_boxes, unmix
from mixjax.models import assemble, projectors
from mixjax.objectives import branches as sides
from mixjax.objectives import moco, region_terms
from mixjax.objectives.contrast import unit
from mixjax.optim.schedules import Clock
from mixjax.state import Geometry, TrainState
from tests.parity.torch_names import images

RNG = jax.random.key(0)
CLOCK = Clock(total_steps=10, steps_per_epoch=10)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


class Patches(nn.Module):
    """The stand-in encoder: a linear layer on patches, and the mean over places."""

    patch: int
    width: int

    @nn.compact
    def __call__(self, inputs, *, train):
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, side, "VALID", name="conv")(inputs["images"])
        return {"map": x, "features": x.mean(axis=(1, 2))}


def network_of(encoder, width, size):
    how = dict(hidden_norm=False, hidden_bias=True, last_bias=True, last_norm="none")
    how |= {"norm": None, "dtype": jnp.float32}
    parts = {
        "encoder": encoder,
        "projector": projectors.Projector(widths=(width,), **how),
        "region_projector": projectors.RegionProjector(width, jnp.float32),
    }
    return assemble(parts, Geometry((size, size), 3, 8, (4, 4), True))


def region_params(weight, bias):
    """Of the shared projector; weight: torch's [d, D, 1, 1] or [d, D]."""
    kernel = weight.reshape(weight.shape[:2]).T
    return {"fc": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}


def cut_of(box, size):
    """A Cut of x1, x2, y1, y2, ends exclusive, where x counts rows."""
    mask = unmix.mask_of_box(tuple(jnp.asarray(box)), size, size)[None]
    return mask.mean(axis=(1, 2)), mask


def parted(params, features, mask):
    """{"outside", "inside"} of maps in torch's layout; params: region_params."""
    depth, width = params["fc"]["kernel"].shape
    network = network_of(Patches(8, depth), width, mask.shape[1])
    maps = jnp.asarray(features).transpose(0, 2, 3, 1)
    whole = {"region_projector": params}
    return detmix.regions(network, whole, maps, mask[..., None])


def memory_of(ref, *names):
    keys = {"main": "queue", "local": "local_queue", "global": "global_queue"}
    pointer = jnp.int32(ref.arrays.get("in/queue_ptr", 0))
    return {
        name: {"queue": jnp.asarray(ref[f"in/{keys[name]}"].T), "pointer": pointer}
        for name in names
    }


# --- the official code ---------------------------------------------------------------


def test_pooling(reference):
    ref = reference("lam_mixssl")
    params = region_params(
        ref["params/projection.weight"], ref["params/projection.bias"]
    )
    _, mask = cut_of(ref["in/box_x1_x2_y1_y2"], int(ref["hp/upsample"]))

    def run(features):
        found = parted(params, features, mask)
        inside, outside = (unit(found[k]["projection"]) for k in ("inside", "outside"))
        return inside[:, ::2].sum() + outside[:, 1::3].sum(), (inside, outside)

    both = jax.jit(jax.value_and_grad(run, has_aux=True))
    (_, (inside, outside)), grad = both(ref["in/feature"])
    ref.check("inside", inside)
    ref.check("outside", outside)
    ref.check("grad_feature", grad)


def encoder_params(ref, name):
    """Of encoder_q or encoder_k, as our encoder and projector."""
    get = lambda leaf: ref[f"params/{name}.{leaf}"]
    kernel = get("conv.weight").transpose(2, 3, 1, 0)  # (row, column, in, out)
    conv = {"kernel": kernel, "bias": get("conv.bias")}
    fc = {"kernel": get("fc.weight").T, "bias": get("fc.bias")}
    tree = {"encoder": {"conv": conv}, "projector": {"fc1": fc}}
    return jax.tree.map(jnp.asarray, tree)


def released(ref, monkeypatch, shuffle):
    """(method, state before the step, batch) of the official loss."""
    size = int(ref["hp/upsample"])
    cuts = [cut_of(ref[f"in/{b}_x1_x2_y1_y2"], size) for b in ("box", "box2")]
    given = lambda *, gamma, groups: lambda rng, height, width: cuts
    monkeypatch.setattr(twin_boxes, "boxes", given)
    width, depth = ref["params/encoder_q.fc.weight"].shape
    network = network_of(Patches(int(ref["hp/encoder_patch"]), depth), width, size)
    queue = ref["in/queue"].shape[1]
    method = detmix.make(
        network,
        approach=2,
        objective=dict(name="moco", queue=queue, temperature=ref["hp/T"]),
        lam="area",
        region_reverse="paper",
        global_positive="key",
        mixture=dict(gamma=1.0, groups=1),
        teacher=dict(momentum=ref["hp/m"], rule="constant", per="step"),
        shuffle=shuffle,
        evaluate="projection",
        clock=CLOCK,
    )
    params = encoder_params(ref, "encoder_q")
    # Their step begins with the moving average that ours ends with.
    teacher = {"params": encoder_params(ref, "encoder_k"), "stats": {}}
    teacher = sides.follow(teacher, params, {}, ref["hp/m"])
    params["region_projector"] = region_params(
        ref["params/projection.weight"], ref["params/projection.bias"]
    )
    memory = memory_of(ref, "main", "local")
    state = TrainState(jnp.int32(1), params, {}, {}, teacher, memory)
    views = [jnp.asarray(images(ref[f"in/im{i}"])) for i in (1, 2)]
    batch = {"views": views, "index": jnp.arange(len(views[0]))}
    return method, state, batch


@pytest.mark.parametrize("shuffle", [True, False])
def test_released_loss(reference, monkeypatch, shuffle):
    ref = reference("lam_mixssl")
    method, state, batch = released(ref, monkeypatch, shuffle)
    both = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    (loss, aux), grads = both(state.params, state, batch, RNG)
    ref.check("loss", loss)
    ref.check("lam1", aux.metrics["lam"])
    theirs = {"clean": "orig", "mixed": "mix", "global_global": "outside"}
    theirs["local_local"] = "inside"
    for ours, name in theirs.items():
        ref.check(f"loss_{name}", aux.metrics[f"loss_{ours}"])
        if name != "orig":
            turned = aux.metrics[f"loss_{ours}_reversed"]
            ref.check(f"loss_{name}_reversed", turned)
    for name, grad in {
        "projection.bias": grads["region_projector"]["fc"]["bias"],
        "encoder_q.fc.bias": grads["projector"]["fc1"]["bias"],
        "encoder_q.conv.bias": grads["encoder"]["conv"]["bias"],
    }.items():
        ref.check(f"grad/{name}", grad)


def test_released_queues(reference, monkeypatch):
    ref = reference("lam_mixssl")
    method, state, batch = released(ref, monkeypatch, True)
    aux = jax.jit(method.loss)(state.params, state, batch, RNG)[1]
    after = method.update(state, aux.carry)
    ref.check("queue_after", after.memory["main"]["queue"].T)
    ref.check("local_queue_after", after.memory["local"]["queue"].T)
    start, n = ref["in/queue_ptr"], len(batch["index"])
    assert after.memory["local"]["pointer"] == (start + n) % ref["in/queue"].shape[1]
    ref.check("k_crop", after.memory["local"]["queue"][start : start + n])


def test_released_mixtures(reference):
    ref = reference("lam_mixssl")
    views = [jnp.asarray(images(ref[f"in/im{i}"])) for i in (1, 2)]
    size = int(ref["hp/upsample"])
    cuts = [cut_of(ref[f"in/{b}_x1_x2_y1_y2"], size) for b in ("box", "box2")]
    mixed = jax.jit(twin_boxes.mix_batch)(*views, *cuts)
    for i in (1, 2):
        ref.check(f"mixed{i}", mixed[i - 1].images.transpose(0, 3, 1, 2))
    ref.check("lam1", mixed[0].lam[0])


# --- the formulas, on given vectors and maps ------------------------------------------

GIVEN = ("feature_q", "q", "q_mixed", "feature_k", "k")


def evaluated(ref, terms, constant=None):
    """The loss of given vectors and maps, its terms, gradients and regions."""
    size = int(ref["hp/upsample"])
    (own, mask), (_, mask_k) = (
        cut_of(ref[f"in/box{i}_x1_x2_y1_y2"], size) for i in (1, 2)
    )
    objective = moco.make(queue=ref["in/queue"].shape[1], temperature=ref["hp/T"])
    memory = memory_of(ref, *{term.queue for term in terms.values()})
    arrays = {name: jnp.asarray(ref[f"in/{name}"]) for name in GIVEN}
    n = len(arrays["q"])
    lam = jnp.broadcast_to(own if constant is None else constant, (n,))
    partner = jnp.asarray(ref.arrays.get("in/perm", np.arange(n)[::-1]))[None]
    weights = ref["params/projection.weight"], ref["params/projection.bias"]

    def run(arrays, params):
        wrap = lambda name: {"projection": arrays[name]}
        query = parted(params, arrays["feature_q"], mask)
        key = parted(params, arrays["feature_k"], mask_k)
        # As in the method; without it the projector would learn from keys, too.
        key = jax.lax.stop_gradient(key)
        found = {f"{k}_q": v for k, v in query.items()}
        found |= {f"{k}_k": v for k, v in key.items()}
        query |= {"full": wrap("q"), "mixed": wrap("q_mixed")}
        key |= {"full": wrap("k")}
        loss, parts = region_terms.total(
            objective, terms, query, key, memory, lam, partner
        )
        return loss, (parts, {k: unit(v["projection"]) for k, v in found.items()})

    both = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    (loss, aux), grads = jax.jit(both)(arrays, region_params(*weights))
    return loss, own[0], *aux, *grads


def check_all(ref, prefix, terms, constant=None):
    loss, own, parts, pooled, grads, region = evaluated(ref, terms, constant)
    ref.check("lam", own)
    for name, value in pooled.items():
        ref.check(name, value)
    ref.check(f"{prefix}total", loss)
    checked = set()
    for name, value in parts.items():
        theirs = name.replace("loss_clean", "loss_orig")
        if f"out/{prefix}{theirs}" in ref.arrays:
            ref.check(f"{prefix}{theirs}", value)
            checked.add(theirs)
    for name in ("feature_q", "q", "q_mixed"):
        ref.check(f"{prefix}grad_{name}", grads[name])
    assert not grads["feature_k"].any() and not grads["k"].any()
    ref.check(f"{prefix}grad_projection.weight", region["fc"]["kernel"].T)
    ref.check(f"{prefix}grad_projection.bias", region["fc"]["bias"])
    return checked


def test_approach_1(reference):
    ref = reference("lam_approach1")
    terms = region_terms.terms_of(1, "none", "region")
    checked = check_all(ref, "", terms)
    assert len(checked) == len(terms)
    check_all(ref, "constant_half/", terms, constant=0.5)


@pytest.mark.parametrize("order", ["paper", "consistent"])
@pytest.mark.parametrize("queues", ["two_queues", "three_queues"])
def test_approach_2(reference, queues, order):
    ref = reference("lam_consistent")
    positive = {"two_queues": "key", "three_queues": "region"}[queues]
    terms = region_terms.terms_of(2, order, positive)
    checked = check_all(ref, f"{queues}/{order}/", terms)
    assert len(checked) == len(terms)
