"""Losses of views and mixtures on given embeddings: every base, order and variant."""

import jax
import jax.numpy as jnp
import pytest

from mixjax import objectives
from mixjax.objectives import wmse
from mixjax.objectives.branches import Branch
from mixjax.objectives.mixing import Pairing, losses
from mixjax.state import Clock, Mixed

RNG = jax.random.key(0)
PAIRING = dict(pairs="all", targets=2, reduce="mean", branches="one")
PAIRING |= dict(mixed_as="both", against=(1,), reverse="both")
ONLINE, BOTH = {"mixed_as": "online"}, {"branches": "both"}
BASES = {  # changes of PAIRING
    "simclr": {},
    "byol": {"reduce": "sum"},
    "simsiam": {},
    "wmse2": {"pairs": "forward"},
    "swav": {},
    "moco_asym": {"pairs": "forward", "reduce": "sum", **ONLINE},
    "moco_sym": {"reduce": "sum", "against": (1, 0), **ONLINE},
}
# What the online and the target side of a branch are called in the file.
NAMES = {"simclr": "zz", "byol": "pt", "simsiam": "pz", "wmse2": "vv", "swav": "uu"}
NAMES |= {"moco_asym": "qk", "moco_sym": "qk"}
VARIANTS = [
    (base, order, variant)
    for order in ("reversal", "random")
    for base, variants in {
        "simclr": ("symmetric", "online_only", "online_only_x2_candidates"),
        "byol": ("symmetric", "online_only"),
        "simsiam": ("symmetric", "online_only"),
        "wmse2": ("symmetric", "online_only", "four_views"),
        "swav": ("symmetric", "online_only", "code"),
        "moco_asym": ("asym",),
        "moco_sym": ("sym",),
    }.items()
    for variant in variants
]


def orders_of(ref):
    """W-MSE's sub-batches: what the file gives to the clean, mixed, reversed call."""
    clean, mixed = (jax.random.fold_in(RNG, k) for k in range(2))
    # The key of a mixture is split for its two orders; with both branches mixed there
    # is one, by the key itself.
    keys = jnp.stack([clean, *jax.random.split(mixed), mixed])
    names = "clean", "mix", "reverse", "mix"
    given = jnp.stack([jnp.asarray(ref[f"in/wmse2/subbatch_{n}"]) for n in names])

    def orders(rng, batch):
        data = jax.random.key_data
        return given[(data(keys) == data(rng)).all(axis=1).argmax()]

    return orders


def objective_of(ref, base: str, **changes):
    hp = {k: v.item() for k, v in ref.part(f"hp/{base.split('_')[0]}").items()}
    if base == "wmse2":
        how = {"size": hp["w_size"], "eps": hp["eps"], "loss": "distance"}
        return wmse.build(orders_of(ref), **how)
    fields = {
        "simclr": lambda: {"name": "simclr", "candidates": "both", **hp},
        "byol": lambda: {"name": "cosine", "loss": "distance"},
        "simsiam": lambda: {"name": "cosine", "loss": "negative"},
        "swav": lambda: {
            "name": "swav",
            "temperature": hp["temperature"],
            "epsilon": hp["epsilon"],
            "iterations": hp["sinkhorn_iterations"],
            "queue": 0,
            "queue_start_epochs": 0.0,
        },
        "moco": lambda: {
            "name": "moco",
            "queue": ref["in/moco/queue"].shape[1],
            **hp,
        },
    }[base.split("_")[0]]()
    return objectives.make(fields | changes, clock=Clock(10, 10))


def memory_of(ref, base: str) -> dict:
    if not base.startswith("moco"):
        return {}
    return {"queue": jnp.asarray(ref["in/moco/queue"]).T, "pointer": jnp.int32(0)}


def outputs_of(base: str, x: dict, number: str) -> tuple[dict, dict]:
    """(of what predicts, of the target) for the branch called z1, pm, q_mask, ..."""
    online, target = (x.get(f"{letter}{number}") for letter in NAMES[base])
    if base == "swav":
        unit = online / jnp.linalg.norm(online, axis=1, keepdims=True)
        table = x["prototypes"]
        out = {"embedding": unit, "scores": unit @ table.T, "prototypes": table.T}
        return out, out
    if base in ("byol", "simsiam"):
        return {"prediction": online}, {"projection": target}
    return {"projection": online}, {"projection": target}


def run(ref, base, pairing, mixtures, *, lams, special=None, views=2):
    """losses() and the gradients of their sum for each of `lams`, under one jit.

    mixtures: {name: (order of its partners or None, its branch's name in the file for
    each view)}; lams: [{name: own share}].
    """
    family = base.split("_")[0]
    given = {k: jnp.asarray(v) for k, v in ref.part(f"in/{family}").items()}
    given = {k: v for k, v in given.items() if v.ndim == 2 and "batch" not in k}
    plain = objective_of(ref, base)
    numbers = {Branch(i, 0): str(i + 1) for i in range(views)}
    for k, (_, names) in enumerate(mixtures.values(), start=1):
        numbers |= {Branch(i, k): name for i, name in enumerate(names)}
    pairing = Pairing(**PAIRING | BASES[base] | pairing).check()

    def total(x, lam):
        sides = {b: outputs_of(base, x, name) for b, name in numbers.items()}
        online = {b: one for b, (one, _) in sides.items()}
        target = {b: two for b, (_, two) in sides.items()}
        if base.startswith("moco"):  # only some branches are encoded as keys
            target = {b: x for b, x in target.items() if x["projection"] is not None}
        blends = {
            name: mixed(ref, base, lam[name], order)
            for name, (order, _) in mixtures.items()
        }
        calls = 1 + len(blends)
        found = losses(
            pairing,
            (plain, special or plain),
            views,
            blends,
            [online] * calls,
            [target] * calls,
            memory_of(ref, base),
            RNG,
        )
        return sum(found.values()), found

    with jax.default_matmul_precision("highest"):
        both = jax.jit(jax.grad(total, has_aux=True))
        return [both(given, lam) for lam in lams]


def mixed(ref, base, lam, order=None):
    family = base.split("_")[0]
    partner = None
    if order:
        partner = jnp.asarray(ref[f"in/{family}/perm_{order}"])[None]
    n = len(ref[f"in/{family}/perm_reversal"])
    return Mixed(None, jnp.full(n, lam), None, partner)


def check(ref, place, result):
    grads, found = result
    ref.check(f"{place}/total", sum(found.values()))
    for key in ref.part(f"out/{place}"):
        if key.startswith("grad_"):
            ref.check(f"{place}/{key}", grads[key.removeprefix("grad_")])


@pytest.mark.parametrize("base, order, variant", VARIANTS)
def test_one_mixture(reference, base, order, variant):
    ref = reference("mixture_losses")
    family = base.split("_")[0]
    place = f"{family}/{order}/{variant}"
    pairing = ONLINE if variant.startswith("online_only") else {}
    if variant == "code":
        pairing = {"reverse": "target"}
    special = None
    if variant.endswith("x2_candidates"):
        special = objective_of(ref, base, candidates="targets")
    how = {"special": special, "views": 4 if variant == "four_views" else 2}
    lams = [{"m": x} for x in (ref[f"in/{family}/lam"], 1.0, 0.0)]
    result, alone, back = run(
        ref, base, pairing, {"m": (order, ("m",))}, lams=lams, **how
    )
    ref.check(f"{place}/loss_clean", result[1]["clean"])
    ref.check(f"{place}/loss_mix", alone[1]["m"])
    ref.check(f"{place}/loss_reverse", back[1]["m"])
    check(ref, place, result)


@pytest.mark.parametrize("base", ["simclr", "moco_asym", "moco_sym"])
def test_two_mixtures(reference, base):
    ref = reference("mixture_losses")
    family = base.split("_")[0]
    lam = {"unmix": ref[f"in/{family}/lam"], "mask": ref[f"in/{family}/lam_mask"]}
    given = {"unmix": ("reversal", ("m",)), "mask": ("random", ("_mask",))}
    (result,) = run(ref, base, {}, given, lams=[lam])
    check(ref, f"two_mixtures/{base}", result)


@pytest.mark.parametrize("base", ["simclr", "byol", "moco_asym", "moco_sym"])
def test_erasing(reference, base):
    ref = reference("mixture_losses")
    family = base.split("_")[0]
    lam = ref["in/byol/lam" if base == "byol" else f"in/{family}/lam_mask"]
    given = {"a": (None, ("_erase_a",)), "b": (None, ("_erase_b",))}
    (result,) = run(ref, base, {}, given, lams=[{"a": lam, "b": 1 - lam}])
    check(ref, f"erase/{base}", result)


@pytest.mark.parametrize("base", BASES)
def test_both_branches(reference, base):
    ref = reference("mixture_losses")
    given = {"m": ("reversal", ("m1", "m2"))}
    (result,) = run(ref, base, BOTH, given, lams=[{"m": 0.123}])
    ref.check(f"both_branches/{base}/loss_mix", result[1]["m"])
    check(ref, f"both_branches/{base}", result)
