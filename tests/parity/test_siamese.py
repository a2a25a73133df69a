"""Whole steps of MoCo with mixtures against the Un-Mix and MixMask code.

The encoder is one linear layer, as in the files; the draws are theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, mixtures
from mixjax.mixtures import mixmask, pairs, unmix
from mixjax.objectives import branches
from mixjax.optim import schedules
from mixjax.state import Clock, TrainState
from tests.parity.torch_names import images
from tests.support import linear_network

PAIRING = dict(pairs="forward", targets=2, reduce="sum", branches="one")
PAIRING |= dict(mixed_as="online", against=(1,), reverse="both")
SYMMETRIC = PAIRING | {"pairs": "all", "against": (1, 0)}


def mixture_of(lam, mask, partner, permutation):
    """A mixture that draws what the file has drawn."""

    def mixture(rng, x):
        whole = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), x.shape[1:3])
        one = (jnp.asarray(a)[None] for a in (lam, whole, partner))
        return (pairs.mix(x, *one, permutation),)

    return mixture


def by_unmix(ref, mode, names):
    """Un-Mix as drawn in the file; names: of its lam, its raw lam and its centre."""
    flip = pairs.draw_partner(jax.random.key(0), len(ref["in/im1"]), "reverse")
    own = share = np.float32(ref[f"in/{names[0]}"])
    if mode == "cutmix":
        h, w = ref["in/im1"].shape[2:]
        raw, centre = ref[f"in/{names[1]}"], ref[f"in/{names[2]}"]
        edges, own = unmix.box(jnp.float32(raw), jnp.asarray(centre), h, w, widen=False)
        share = unmix.mask_of_box(edges, h, w)
    return mixture_of(own, share, flip, "reverse")


def by_mask(ref, partner, permutation):
    cells = jnp.asarray(ref["in/grid_mask"], jnp.float32)
    mask = mixmask.upsample(cells, *ref["in/im1"].shape[2:])
    return mixture_of(mask.mean(), mask, partner, permutation)


def layer(ref, side):
    weight, bias = (ref[f"params/encoder_{side}.fc.{n}"] for n in ("weight", "bias"))
    fc = {"kernel": jnp.asarray(weight).T, "bias": jnp.asarray(bias)}
    return {"encoder": {}, "projector": {"fc1": fc}}


@pytest.fixture
def step(monkeypatch):
    """step(ref, mixtures, pairing) -> (loss, metrics, gradient, memory, teacher)."""

    def run(ref, blends, pairing):
        monkeypatch.setattr(mixtures, "make", lambda config: blends)
        queue = jnp.asarray(ref["in/queue"]).T
        objective = dict(name="moco", queue=len(queue), temperature=ref["hp/T"])
        config = dict(name="siamese", objective=objective, pairing=pairing)
        config |= dict(join={"encoder": "none", "heads": "none"}, shuffle=True)
        config |= dict(teacher=dict(momentum=ref["hp/m"], rule="constant", per="step"))
        config |= dict(mixtures={}, mixed_objective={}, evaluate="projection")
        method = methods.make(config, linear_network.network(), clock=Clock(10, 10))
        views = tuple(jnp.asarray(images(ref[f"in/{im}"])) for im in ("im1", "im2"))
        params = layer(ref, "q")
        pointer = jnp.int32(ref["in/queue_ptr"])
        memory = {"queue": queue, "pointer": pointer}
        # The code averages before it encodes keys, we after a step: the same moment.
        teacher = {"params": layer(ref, "k"), "stats": {}}
        teacher = branches.follow(teacher, params, {}, ref["hp/m"])
        state = TrainState(jnp.int32(0), params, {}, {}, teacher, memory)
        batch = {"views": views, "index": jnp.arange(len(views[0]))}
        both = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
        with jax.default_matmul_precision("highest"):
            (loss, aux), grads = both(params, state, batch, jax.random.key(0))
        return (
            loss,
            aux.metrics,
            grads["projector"]["fc1"],
            aux.carry["memory"],
            teacher,
        )

    return run


def check(ref, place, result, *, keys=True):
    loss, _, grads, memory, teacher = result
    ref.check(f"{place}/loss", loss)
    ref.check(f"{place}/grad/encoder_q.fc.weight", grads["kernel"].T)
    for name, value in {
        "grad/encoder_q.fc.bias": grads["bias"],
        "queue_after": memory["queue"].T,
        "queue_ptr_after": np.int32(memory["pointer"])[None],
        "encoder_k_after/fc.weight": teacher["params"]["projector"]["fc1"]["kernel"].T,
    }.items():
        if f"out/{place}/{name}" in ref.arrays:
            ref.check(f"{place}/{name}", value)
        else:
            assert not keys or "bias" in name or "encoder_k" in name, name


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("script", ["imagenet", "cifar_asymmetric", "cifar_symmetric"])
def test_unmix(reference, step, mode, script):
    ref = reference("unmix")
    names = "mixup_lam", "cutmix_lam_raw", "cutmix_center_xy"
    blends = {"unmix": by_unmix(ref, mode, names)}
    pairing = SYMMETRIC if script.endswith("_symmetric") else PAIRING
    result = step(ref, blends, pairing)
    check(ref, f"{script}_{mode}", result)
    if script == "imagenet":
        ref.check(f"imagenet_{mode}/loss_orig", result[1]["loss_clean"])


def test_mixmask(reference, step):
    ref = reference("mixmask")
    flip = pairs.draw_partner(jax.random.key(0), len(ref["in/im1"]), "reverse")
    result = step(ref, {"mixmask": by_mask(ref, flip, "reverse")}, PAIRING)
    check(ref, "mixmask", result, keys=False)


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_both(reference, step, mode):
    ref = reference("mixmask")
    names = "unmix_lam", "unmix_cutmix_lam_raw", "unmix_cutmix_center_xy"
    blends = {
        "unmix": by_unmix(ref, mode, names),
        "mixmask": by_mask(ref, ref["in/index_mask"], "random"),
    }
    check(ref, f"both_{mode}", step(ref, blends, PAIRING), keys=False)


def test_teacher_of_moco(reference):
    """Three momentum updates; the statistics of norms are not averaged."""
    ref = reference("info_nce_moco")

    def tree(part):
        names = ("w.weight", "w.bias", "bn.weight", "bn.bias")
        return {"encoder": {name: jnp.asarray(part[name]) for name in names}}

    start = "params/encoder_k."
    named = {k.removeprefix(start): v for k, v in ref.arrays.items() if start in k}
    stats = {n: named[n] for n in ("bn.running_mean", "bn.running_var")}
    teacher = branches.new_teacher(tree(named), {"encoder": stats})
    steps = ref.part("in/encoder_q_steps")
    for i in range(3):
        mine = tree({name: value[i] for name, value in steps.items()})
        teacher = jax.jit(branches.follow)(teacher, mine, teacher["stats"], ref["hp/m"])
        for name, value in teacher["params"]["encoder"].items():
            ref.check(f"encoder_k_step{i + 1}/{name}", value)
        for name, value in teacher["stats"]["encoder"].items():
            ref.check(f"encoder_k_step{i + 1}/{name}", value)


def test_teacher_of_byol(reference):
    ref = reference("byol_loss")
    for i, progress in enumerate(ref["in/progress"]):
        clock = Clock(1000, 1000)
        tau = schedules.momentum(ref["hp/byol_tau"], "cosine", "step", clock)
        value = jax.jit(tau)(jnp.float32(progress * 1000))
        assert abs(float(value) - ref["out/tau"][i]) <= ref["tol/tau"]
    teacher = {"params": {"encoder": dict(ref_part(ref, "model_t"))}, "stats": {}}
    mine = {"encoder": dict(ref_part(ref, "model"))}
    for i, progress in enumerate(ref["in/progress"][:4]):
        teacher = branches.follow(teacher, mine, {}, tau(progress * 1000))
        if i in (0, 3):
            for name in ("weight", "bias"):
                value = teacher["params"]["encoder"][name]
                ref.check(f"model_t_after_{i + 1}/{name}", value)


def ref_part(ref, name):
    return {k: jnp.asarray(ref[f"params/{name}.{k}"]) for k in ("weight", "bias")}
