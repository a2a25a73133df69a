"""The optimizers of the papers, and their rules for groups of parameters.

Optimizers are optax chains whose operations come in the order of the reference code
(torch's SGD, Adam and AdamW, MAE's LARS, apex' LARC). Rules, pairs of a regular
expression for parameter paths and a value, give groups a rate or decay of their own.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax.config.registry import call, take
from mixjax.errors import UsageError, check_name, check_regex
from mixjax.sharding.meshes import path_name
from mixjax.state import Clock

Array = jax.Array
Schedule = Callable[[Array], Array]
log = logging.getLogger("mixjax")


# --- which parameters ------------------------------------------------------------


def first_match(name: str, rules: Sequence[tuple[str, float]], default):
    """The value of the first rule whose regex is found in `name`."""
    return next((v for regex, v in rules if re.search(regex, name)), default)


def decay_mask(params, vectors: bool, exempt: Sequence[str]):
    """True where weight decay applies.

    vectors: also to leaves with one axis (biases, scales of norms). exempt: regexes
    of paths that are never decayed.
    """

    def decays(path, leaf):
        name = path_name(path)
        named = any(re.search(regex, name) for regex in exempt)
        return (vectors or leaf.ndim > 1) and not named

    return jax.tree_util.tree_map_with_path(decays, params)


# encoder/blocks_I/.., or of networks with stages encoder/stage_S/blocks_I/..
BLOCK = re.compile(r"encoder/(?:stage_(\d+)/)?(?:blocks_(\d+)|merge)/")
STEM = re.compile(r"encoder/(cls_token|mask_token|pos_embed|patch_)")


def layer_of(name: str, depths: int | Sequence[int]) -> int:
    """The layer number of an encoder's parameter for layer-wise decay.

    depths: the number of blocks or, for a network with stages, of each stage. Tokens,
    positions and patch embedding are 0, block i (counted through all stages) is i + 1,
    a merging has the number of the block before it, and everything else is one more
    than the blocks (MAE's and SimMIM's fine-tuning).
    """
    depths = (depths,) if isinstance(depths, int) else depths
    place = BLOCK.search(name)
    if place:
        stage, block = (None if n is None else int(n) for n in place.groups())
        before = sum(depths[: stage or 0])
        return before + (depths[stage] if block is None else block + 1)
    if STEM.search(name):
        return 0
    return sum(depths) + 1


def depths_of(names: Sequence[str]) -> tuple[int, ...]:
    """The number of blocks of each stage, as the names of parameters tell; or ()."""
    counts: dict[int, int] = {}
    for name in names:
        place = BLOCK.search(name)
        if place and place[2] is not None:
            stage = int(place[1] or 0)
            counts[stage] = max(counts.get(stage, 0), int(place[2]) + 1)
    return tuple(counts.get(stage, 0) for stage in range(max(counts, default=-1) + 1))


def layer_scales(params, decay: float, depths: int | Sequence[int]):
    """decay^(number of blocks + 1 - layer) for every leaf.

    UsageError unless `depths` are those of the network: a block beyond them would get
    a rate above 1, and a network whose blocks have other names no decay at all.
    """
    depths = (depths,) if isinstance(depths, int) else tuple(depths)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    real = depths_of([path_name(path) for path, _ in leaves])
    if not real:
        raise UsageError(
            f"optim.layers={depths} asks for layer-wise decay, but no parameter of the "
            f"network is named encoder/blocks_I/... or encoder/stage_S/blocks_I/...; "
            f"set optim.layer_decay=1."
        )
    if real != depths:
        raise UsageError(
            f"optim.layers={depths} does not fit the network, whose blocks are {real}."
        )
    top = sum(depths) + 1
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay ** (top - layer_of(path_name(path), depths)), params
    )


# --- optimizers ------------------------------------------------------------------


class Count(NamedTuple):
    """The state of a transformation that only counts steps."""

    count: Array  # [] int32


def start_count(params) -> Count:
    return Count(jnp.zeros((), jnp.int32))


def scale_by_rates(schedule: Schedule, rules) -> optax.GradientTransformation:
    """Multiplies each update by -rate; rules: a tree of factors of `schedule`.

    "peak" instead of a number is the peak of the schedule at every step. 0 freezes a
    parameter, whatever its gradient: x + -0.0 is x for every x, -0.0 included.
    """

    def update(updates, state, params=None):
        rate = schedule(state.count)

        def one(u, rule):
            if rule == 0:
                return jnp.full_like(u, -0.0)
            if rule == "peak":
                scaled = schedule.peak
            else:  # a factor of 1 leaves no operation in the graph
                scaled = rate * rule if rule != 1 else rate
            return u * jnp.asarray(-scaled, u.dtype)

        return jax.tree.map(one, updates, rules), Count(state.count + 1)

    return optax.GradientTransformation(start_count, update)


def hold(steps) -> optax.GradientTransformation:
    """Zeroes each update during its first `steps`, a tree of counts; 0 for none."""

    def update(updates, state, params=None):
        def one(u, n):
            return jnp.where(state.count < n, jnp.full_like(u, -0.0), u) if n else u

        return jax.tree.map(one, updates, steps), Count(state.count + 1)

    return optax.GradientTransformation(start_count, update)


def keep_unit(chosen) -> optax.GradientTransformation:
    """Normalises columns to length 1 at the end of a step where `chosen` is True.

    Kernels [D, K] only. SwAV does this before each step, with the same result.
    """

    def update(updates, state, params):
        def one(u, p, is_chosen):
            if not is_chosen:
                return u
            new = p + u
            norm = jnp.linalg.norm(new, axis=0, keepdims=True)
            return new / jnp.maximum(norm, 1e-12) - p

        return jax.tree.map(one, updates, params, chosen), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_by_norm(most: float, scales) -> optax.GradientTransformation:
    """Scales gradients by min(1, most / (norm + 1e-6)), torch's clip_grad_norm_.

    norm: of all gradients together, except those whose `scales` are 0: frozen
    parameters have no gradient in torch.
    """

    def update(updates, state, params=None):
        trained = jax.tree.map(lambda u, s: u if s else None, updates, scales)
        factor = jnp.minimum(1.0, most / (optax.tree.norm(trained) + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's moments, with bias corrections 1 - b^t accurate to the last bit.

    optax subtracts in float32, which for b2 = 0.999 leaves five digits in the first
    steps; torch computes them in float64. The state has optax' own type.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        first = -jnp.expm1(count * math.log(b1))
        second = -jnp.expm1(count * math.log(b2))
        updates = jax.tree.map(
            lambda m, v: (m / first) / (jnp.sqrt(v / second) + eps), mu, nu
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_larc(trust_coefficient: float, weight_decay: float, eps: float):
    """apex' LARC without clipping: g <- (g + wd p) * trust |p| / (|g| + wd |p| + eps).

    Every tensor, vectors too; untouched (no decay either) where a norm is zero.
    """

    def one(g, p):
        norm_p, norm_g = jnp.linalg.norm(p), jnp.linalg.norm(g)
        ratio = trust_coefficient * norm_p / (norm_g + weight_decay * norm_p + eps)
        adapted = (g + weight_decay * p) * ratio
        return jnp.where((norm_p > 0) & (norm_g > 0), adapted, g)

    def update(updates, state, params):
        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adamw(mask, *, b1: float, b2: float, eps: float, weight_decay: float):
    """Decoupled decay, multiplied by the rate that follows (torch's AdamW)."""
    return optax.chain(
        scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
    )


def adam(mask, *, b1: float, b2: float, eps: float, weight_decay: float):
    """Decay added to the gradient before the moments (torch's Adam)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        scale_by_adam(b1, b2, eps),
    )


def sgd(mask, *, momentum: float, weight_decay: float, nesterov: bool):
    """v <- momentum v + (g + wd p); p <- p - lr v (torch's SGD).

    nesterov: p <- p - lr (g + wd p + momentum v) instead, with the new v.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(momentum, nesterov=nesterov),
    )


def lars(mask, *, momentum: float, weight_decay: float, trust_coefficient: float):
    """MAE's LARS: decay and trust ratio where `mask` says, momentum before the rate.

    optax.lars multiplies by the rate before the momentum; with a schedule that is
    another optimizer.
    """
    trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(trust, mask),
        optax.trace(momentum),
    )


def larc(mask, *, momentum: float, weight_decay: float, trust_coefficient: float, eps):
    """SwAV's LARC around SGD; it takes every tensor, whatever `mask` says."""
    return optax.chain(
        scale_by_larc(trust_coefficient, weight_decay, eps),
        optax.trace(momentum),
    )


OPTIMIZERS = {"adamw": adamw, "adam": adam, "sgd": sgd, "lars": lars, "larc": larc}


def make(
    config: Mapping, schedule: Schedule, params, *, clock: Clock
) -> optax.GradientTransformation:
    """The optimizer of config.optim for `params` (arrays or shapes).

    decay_vectors, decay_exempt: see decay_mask. layer_decay, layers: see layer_scales;
    the factors multiply those of lr_rules, and layer_decay=1 with no layers is off.
    Rules are (regex, value) pairs for parameter paths; the first match counts.
    lr_rules: factors of the rate; 0 freezes bit for bit, "peak" keeps the rate at its
    peak. freeze_rules: epochs without a step at the start. unit_rules: regexes of
    kernels whose columns keep length 1. clip_norm: see clip_by_norm; clipping comes
    before everything else, and 0 turns it off. UsageError names a wrong field.
    """
    fields = dict(config)
    names = "name", "decay_vectors", "decay_exempt", "lr_rules"
    name, vectors, exempt, lr_rules = take("optim", fields, *names)
    layer_decay, layers = take("optim", fields, "layer_decay", "layers")
    freeze, unit, clip = take(
        "optim", fields, "freeze_rules", "unit_rules", "clip_norm"
    )
    check_name("optim.name", name, OPTIMIZERS)
    if clip < 0:
        raise UsageError(f"optim.clip_norm={clip} is negative; 0 clips nothing.")
    check_rules(
        (*exempt, *unit, *(r for r, _ in lr_rules), *(r for r, _ in freeze)), params
    )

    def by_path(rules, default):
        value = lambda path, _: first_match(path_name(path), rules, default)
        return jax.tree_util.tree_map_with_path(value, params)

    for regex, value in lr_rules:
        if isinstance(value, str):
            check_name(f"optim.lr_rules {regex!r}", value, ["peak"])
    mask = decay_mask(params, vectors, exempt)
    rates = by_path(lr_rules, 1.0)
    if layer_decay != 1:
        check_layer_decay(layer_decay, layers)
        scales = layer_scales(params, layer_decay, layers)
        scaled = lambda rate, scale: rate if isinstance(rate, str) else rate * scale
        rates = jax.tree.map(scaled, rates, scales)
    held = by_path([(regex, clock.steps(epochs)) for regex, epochs in freeze], 0)
    chain = [hold(held)] if freeze else []
    chain += [clip_by_norm(clip, rates)] if clip else []
    chain += [call("optim", OPTIMIZERS[name], fields, mask=mask)]
    for line in describe(params, rates, mask, fields["weight_decay"]):
        log.info(line)
    chain += [scale_by_rates(schedule, rates)]
    chain += [hold(held)] if freeze else []
    chain += [keep_unit(by_path([(r, True) for r in unit], False))] if unit else []
    return optax.chain(*chain)


def check_layer_decay(layer_decay: float, layers: Sequence[int]) -> None:
    """UsageError for a decay out of range, or without the encoder's layers."""
    if not 0 < layer_decay < 1:
        raise UsageError(f"optim.layer_decay={layer_decay} must lie in 0 .. 1.")
    if not layers:
        raise UsageError(
            f"optim.layer_decay={layer_decay} needs optim.layers, the number of the "
            f"encoder's blocks (of each stage), such as (12,)."
        )


def describe(params, rates, mask, weight_decay: float) -> list[str]:
    """Lines of a table: the groups of parameters by rate and decay, slowest first."""
    groups: dict = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), rate, decays in zip(
        leaves, jax.tree.leaves(rates), jax.tree.leaves(mask), strict=True
    ):
        names = groups.setdefault((rate, weight_decay if decays else 0.0), [])
        names.append((path_name(path), math.prod(leaf.shape)))
    order = sorted(groups, key=lambda g: (g[0] if g[0] != "peak" else 1.0, g[1]))
    lines = [f"{'rate x':>9} {'decay':>7} {'tensors':>8} {'parameters':>12}  such as"]
    for rate, decay in order:
        names = groups[rate, decay]
        times = rate if isinstance(rate, str) else f"{rate:.4g}"
        size = sum(n for _, n in names)
        lines.append(
            f"{times:>9} {decay:>7.4g} {len(names):>8} {size:>12,}  {names[0][0]}"
        )
    return lines


def check_rules(regexes: Sequence[str], params) -> None:
    """UsageError for an invalid regex, or one that matches no parameter."""
    names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    for regex in regexes:
        check_regex("optim", regex)
        if not any(re.search(regex, n) for n in names):
            raise UsageError(f"optim: the rule {regex!r} matches no parameter.")
