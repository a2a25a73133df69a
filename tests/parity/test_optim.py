"""Schedules, optimizers and parameter groups against official code and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.optim import optimizers, schedules
from mixjax.optim.schedules import Clock
from tests.parity.torch_names import path_of

COSINE = {
    "floor": 0.0,
    "restart": True,
    "warmup_epochs": 0.0,
    "warmup_start": 0.0,
    "warmup_rule": "from_start",
    "per": "step",
    "first_epoch": 0,
}
STEPS = {k: v for k, v in COSINE.items() if k not in ("floor", "restart")}


def test_lr_schedule(reference):
    ref = reference("lr_schedule")
    per_epoch = 4096  # fine enough that the file's fractional epochs are whole steps
    schedule = schedules.warmup_cosine(
        Clock(ref["hp/epochs"] * per_epoch, per_epoch),
        **COSINE
        | {
            "peak": ref["hp/lr"],
            "floor": ref["hp/min_lr"],
            "warmup_epochs": ref["hp/warmup_epochs"],
        },
    )
    rates = jax.jit(schedule)(jnp.asarray(ref["in/epoch"]) * per_epoch)
    ref.check("lr", rates)
    ref.check("lr_scaled_group", rates * ref["hp/lr_scale"])


def part(ref, name):
    """The settings of one schedule of the file, and its time axis."""
    hp = {k.split("/")[-1]: ref[f"hp/{k}"] for k in ref.part("hp") if f"{name}/" in k}
    (axis,) = ref.part(f"in/{name}").values()
    return hp, jnp.asarray(axis)


@pytest.mark.parametrize("name, first", [("moco_cifar", 1), ("moco_v2", 0)])
def test_cosine_per_epoch(reference, name, first):
    ref = reference("schedules")
    hp, epoch = part(ref, name)
    steps = 97
    schedule = schedules.warmup_cosine(
        Clock(hp["epochs"] * steps, steps),
        peak=hp["lr"],
        **COSINE | {"per": "epoch", "first_epoch": first},
    )
    for within in (0, steps // 2, steps - 1):  # constant inside an epoch
        ref.check(f"{name}/lr", jax.jit(schedule)((epoch - first) * steps + within))


def test_htdt(reference):
    ref = reference("schedules")
    hp, iteration = part(ref, "htdt")
    steps = hp["iterations_per_epoch"]
    schedule = schedules.warmup_steps(
        Clock(hp["epochs"] * steps, steps),
        peak=hp["lr"],
        factor=hp["drop_factor"],
        milestones=[-n for n in hp["drop_before_end"]],
        **STEPS
        | {
            "warmup_epochs": hp["warmup_iterations"] / steps,
            "warmup_rule": "one_ahead",
        },
    )
    ref.check("htdt/lr", jax.jit(schedule)(iteration))


def test_swav(reference):
    ref = reference("schedules")
    hp, iteration = part(ref, "swav")
    steps = hp["iterations_per_epoch"]
    schedule = schedules.warmup_cosine(
        Clock(hp["epochs"] * steps, steps),
        peak=hp["base_lr"],
        **COSINE
        | {
            "floor": hp["final_lr"],
            "warmup_epochs": hp["warmup_epochs"],
            "warmup_start": hp["start_warmup"],
            "warmup_rule": "both_ends",
        },
    )
    ref.check("swav/lr", jax.jit(schedule)(iteration))


@pytest.mark.parametrize("name", ["simmim_multistep", "simmim_cosine"])
def test_simmim(reference, name):
    ref = reference("schedules")
    hp, step = part(ref, name)
    fields = {
        "name": "steps" if name == "simmim_multistep" else "cosine",
        "rule": "batch/512",
        "base": hp["base_lr"],
        **(STEPS if name == "simmim_multistep" else COSINE),
        "warmup_epochs": hp["warmup_epochs"],
        "warmup_start": hp["warmup_init"],
    }
    if name == "simmim_multistep":
        fields |= {"factor": hp["gamma"], "milestones": list(hp["milestones"])}
    else:
        fields |= {"floor": hp["min_lr"], "restart": False}
    steps = ref["hp/simmim/iterations_per_epoch"]
    schedule = schedules.make(
        fields, batch=ref["hp/simmim/batch"], clock=Clock(hp["epochs"] * steps, steps)
    )
    ref.check(f"{name}/lr", jax.jit(schedule)(step))


def test_momenta(reference):
    """Teachers' momenta are cosines of 1 - momentum."""
    ref = reference("schedules")
    hp, epoch = part(ref, "byol_tau")
    rest = schedules.warmup_cosine(
        Clock(hp["epochs"], 1),
        peak=1 - hp["tau0"],
        **COSINE | {"per": "epoch"},
    )
    ref.check("byol_tau/one_minus_tau", jax.jit(rest)(epoch))
    ref.check("byol_tau/tau", 1 - jax.jit(rest)(epoch))
    hp, iteration = part(ref, "moco_v3_momentum")
    steps = hp["iterations_per_epoch"]
    rest = schedules.warmup_cosine(
        Clock(hp["epochs"] * steps, steps), peak=1 - hp["m0"], **COSINE
    )
    ref.check("moco_v3_momentum/one_minus_momentum", jax.jit(rest)(iteration))
    ref.check("moco_v3_momentum/momentum", 1 - jax.jit(rest)(iteration))


def run_steps(config, rates, params, grads):
    """Every state of `config`'s optimizer under given gradients, under jit."""
    tx = optimizers.make(
        config, lambda step: jnp.asarray(rates)[step], params, clock=Clock(9, 9)
    )
    state = tx.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for i in range(len(rates)):
        params, state = step(params, state, {k: g[i] for k, g in grads.items()})
        yield params, state


def found(state, field):
    """The sub-tree `field` (trace, mu, nu) of an optax state."""
    if hasattr(state, field):
        return getattr(state, field)
    parts = state if isinstance(state, tuple) else []
    return next((f for s in parts if (f := found(s, field)) is not None), None)


RULES = {"decay_exempt": (), "lr_rules": (), "clip_norm": 0.0}
RULES |= {"freeze_rules": (), "unit_rules": (), "layer_decay": 1.0, "layers": ()}


def test_lars(reference):
    ref = reference("lars")
    config = {
        "name": "lars",
        "momentum": ref["hp/momentum"],
        "weight_decay": ref["hp/weight_decay"],
        "trust_coefficient": ref["hp/trust_coefficient"],
        "decay_vectors": False,
        **RULES,
    }
    rates = [ref["hp/lr"]] * ref["hp/steps"]
    params = jax.tree.map(jnp.asarray, ref.part("params"))
    steps = run_steps(config, rates, params, ref.part("in/grads"))
    for number, (now, state) in enumerate(steps, start=1):
        buffers = found(state, "trace")
        for name, value in now.items():
            ref.check(f"step{number}/{name}", value)
    for name, value in buffers.items():
        ref.check(f"momentum/{name}", value)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "larc", "lars"])
def test_optimizers(reference, name):
    ref = reference("optimizers")
    hp = ref.part(f"hp/{name}")
    rename = {"beta1": "b1", "beta2": "b2"}
    config = {rename.get(k, k): v.item() for k, v in hp.items() if k != "lrs"}
    config |= {"name": name, "decay_vectors": name != "lars", **RULES}
    config |= {"nesterov": False} if name == "sgd" else {}
    params = jax.tree.map(jnp.asarray, ref.part("params"))
    rates = ref[f"hp/{name}/lrs"]
    steps = run_steps(config, rates, params, ref.part("in/grads"))
    for number, (now, state) in enumerate(steps, start=1):
        last = state
        for key, value in now.items():
            ref.check(f"{name}/step{number}/{key}", value)
    buffers = {"momentum": "trace", "exp_avg": "mu", "exp_avg_sq": "nu"}
    checked = 0
    for buffer, field in buffers.items():
        for key in ref.part(f"out/{name}/{buffer}"):
            ref.check(f"{name}/{buffer}/{key}", found(last, field)[key])
            checked += 1
    assert checked


def tree_of(names, ndims):
    """Shapes under our paths for official names, each with the official rank."""
    tree = {}
    for name, ndim in zip(names, ndims, strict=True):
        *folders, leaf = path_of(str(name)).split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        # Our patch embedding is a matrix where theirs is a convolution.
        here[leaf] = jax.ShapeDtypeStruct((2,) * min(int(ndim), 3), jnp.float32)
    return tree


def at(tree, name):
    for word in path_of(str(name)).split("/"):
        tree = tree[word]
    return tree


def test_weight_decay_groups(reference):
    ref = reference("weight_decay_groups")
    trained = ref["out/trainable"].astype(bool)
    names = ref["out/names"][trained]
    mask = optimizers.decay_mask(tree_of(names, ref["out/ndim"][trained]), False, ())
    decay = [ref["hp/weight_decay"] * at(mask, n) for n in names]
    np.testing.assert_allclose(
        decay, ref["out/weight_decay"][trained], atol=ref["tol/weight_decay"]
    )


def test_our_network_has_these_parameters(reference):
    """The trained parameters of our MAE are the official ones, rank for rank."""
    ref = reference("weight_decay_groups")
    part = {"depth": ref["hp/depth"], "heads": 2, "mlp_ratio": 4.0}
    part |= {"remat": "none", "scan": False}
    config = {
        "precision": "float32",
        "encoder": part
        | {"name": "vit", "image_size": (32, 32), "channels": 3, "patch": 16}
        | {"width": 16, "drop_path": 0.0, "position": "sincos", "pool": "class"},
        "decoder": part | {"width": 8},
    }
    network = models.make(config)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), images)
    ours = {"/".join(k): v for k, v in flatten(params)}
    trained = ref["out/trainable"].astype(bool)
    official = {path_of(str(n)) for n in ref["out/names"][trained]}
    blocks = {n for n in official if "decoder/blocks_" in n}
    depth = 1 + max(int(n.split("blocks_")[1].split("/")[0]) for n in blocks)
    assert {n for n in ours if "decoder/blocks_" not in n} == official - blocks
    first = {n for n in ours if "decoder/blocks_0" in n}
    assert len(first) * depth == len(blocks)


def flatten(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def test_layer_decay(reference):
    ref = reference("layer_decay")
    names, depth = ref["out/names"], ref["hp/depth"]
    tree = tree_of(names, ref["out/ndim"])
    scales = optimizers.layer_scales(tree, ref["hp/layer_decay"], depth)
    ref.check("lr_scale", [at(scales, n) for n in names])
    layers = [optimizers.layer_of(path_of(str(n)), depth) for n in names]
    ref.check("layer_id", np.asarray(layers, np.int32))
    exempt = [f"{name}$" for name in ref["out/no_weight_decay_list"]]
    mask = optimizers.decay_mask(tree, False, exempt)
    ref.check("weight_decay", [ref["hp/weight_decay"] * at(mask, n) for n in names])
    groups = {(at(scales, n), at(mask, n)) for n in names}
    ref.check("num_groups", len(groups))
