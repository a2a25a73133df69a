"""Learning rates over time, and the optimizers of the papers.

Schedules are functions of the step; what a recipe counts in epochs is turned into
steps by a `Clock`. Optimizers are optax chains whose order of operations is that of
the reference code (torch's SGD, Adam and AdamW, MAE's LARS, apex' LARC). Rules on the
paths of parameters, as (regex, value) pairs, give groups their own rate or decay.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax.errors import UsageError, check_name
from mixjax.meshes import path_name
from mixjax.registry import call

Array = jax.Array
Schedule = Callable[[Array], Array]
log = logging.getLogger("mixjax")


class Clock(NamedTuple):
    """How many steps a run has, and how long an epoch of its schedules is."""

    total_steps: int
    steps_per_epoch: float

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def steps(self, epochs: float) -> int:
        """The number of steps nearest to `epochs`, at least 1; 0 for 0."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs else 0


# --- schedules -------------------------------------------------------------------


def epoch_of(step: Array, clock: Clock, *, per: str, first: int) -> Array:
    """The time that a schedule sees, in epochs.

    per: "step" gives step / steps_per_epoch; "epoch" only its whole part plus
    `first`, the number of the first epoch (0, or 1 where the code counts from 1).
    """
    if per == "step":
        return step / clock.steps_per_epoch
    if float(clock.steps_per_epoch).is_integer():
        return step // int(clock.steps_per_epoch) + first
    return jnp.floor(step / clock.steps_per_epoch + 1e-4) + first


WARMUP_RULES = ("from_start", "one_ahead", "both_ends")


def warmup(time, start: float, peak: float, length: float, rule: str, tick: float):
    """A linear climb from `start` to `peak` over `length`; a step takes `tick`.

    rule: "from_start" is at `start` at time 0 and at `peak` at `length` (MAE, SimMIM);
    "one_ahead" is one tick further, so that the first step already moves (HTDT);
    "both_ends" is at `peak` one tick before `length` (SwAV).
    """
    ahead = tick if rule == "one_ahead" else 0.0
    less = tick if rule == "both_ends" else 0.0
    return start + (peak - start) * (time + ahead) / max(length - less, tick)


def cosine(time: Array, *, peak: float, floor: float, start: float, end: float):
    """Half a cosine from `peak` at `start` down to `floor` at `end`."""
    progress = (time - start) / (end - start)
    return floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def warmup_cosine(
    clock: Clock,
    *,
    peak: float,
    floor: float,
    restart: bool,
    warmup_epochs: float,
    warmup_start: float,
    warmup_rule: str,
    per: str,
    first_epoch: int,
) -> Schedule:
    """Linear warm-up, then half a cosine down to `floor`.

    restart: the cosine begins at the end of the warm-up (MAE, SwAV), else it is read
    at the absolute time (SimMIM's timm scheduler: 0.9 of the peak as the warm-up
    ends). The rest: see epoch_of and warmup.
    """
    begin = warmup_epochs if restart else 0

    def fall(time, tick):
        return cosine(time, peak=peak, floor=floor, start=begin, end=clock.epochs)

    return _after_warmup(
        clock, fall, peak, warmup_epochs, warmup_start, warmup_rule, per, first_epoch
    )


def warmup_steps(
    clock: Clock,
    *,
    peak: float,
    factor: float,
    milestones: Sequence[float],
    warmup_epochs: float,
    warmup_start: float,
    warmup_rule: str,
    per: str,
    first_epoch: int,
) -> Schedule:
    """Linear warm-up, then `peak` times `factor` for every milestone passed.

    milestones: epochs; a negative one counts back from the end of the run.
    """
    drops = [m if m >= 0 else clock.epochs + m for m in milestones]

    def fall(time, tick):
        # Half a tick: a division may come out one rounding short of the milestone.
        passed = sum(jnp.where(time > drop - tick / 2, 1, 0) for drop in drops)
        return peak * factor**passed

    return _after_warmup(
        clock, fall, peak, warmup_epochs, warmup_start, warmup_rule, per, first_epoch
    )


def _after_warmup(clock, fall, peak, length, start, rule, per, first) -> Schedule:
    check_name("schedule.per", per, ["step", "epoch"])
    check_name("schedule.warmup_rule", rule, WARMUP_RULES)
    tick = 1 / clock.steps_per_epoch if per == "step" else 1.0

    def schedule(step):
        time = epoch_of(step, clock, per=per, first=first)
        climb = warmup(time, start, peak, length, rule, tick)
        return jnp.where(time < length - tick / 2, climb, fall(time, tick))

    return schedule


SCHEDULES = {"cosine": warmup_cosine, "steps": warmup_steps}


def make_schedule(config: Mapping, *, batch: int, clock: Clock) -> Schedule:
    """The learning-rate schedule of config.schedule; prints what it comes to.

    `base` and the other rates are multiplied by batch / 256, batch / 512 or 1, as
    `rule` says: papers state the base, and mean different batches by it.
    """
    divisors = {"batch/256": 256, "batch/512": 512, "none": batch}
    fields = dict(config)
    name, base, rule = (fields.pop(k) for k in ("name", "base", "rule"))
    check_name("schedule.rule", rule, divisors)
    check_name("schedule.name", name, SCHEDULES)
    scale = batch / divisors[rule]
    for key in ("floor", "warmup_start"):
        if key in fields:
            fields[key] = fields[key] * scale
    schedule = call("schedule", SCHEDULES[name], fields, clock=clock, peak=base * scale)
    log.info(
        "learning rate: base %g x %s (effective batch %d) = %g; %s over %d steps, "
        "of which %d warm up",
        base,
        rule if rule != "none" else "1",
        batch,
        base * scale,
        name,
        clock.total_steps,
        round(config["warmup_epochs"] * clock.steps_per_epoch),
    )
    return schedule


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


def layer_of(name: str, depth: int) -> int:
    """The layer number of a ViT parameter for layer-wise decay (MAE's fine-tuning).

    Tokens, positions and patch embedding are 0, block i is i + 1, the rest depth + 1.
    """
    block = re.search(r"encoder/blocks_(\d+)/", name)
    if block:
        return int(block.group(1)) + 1
    if re.search(r"encoder/(cls_token|mask_token|pos_embed|patch_embed)", name):
        return 0
    return depth + 1


def layer_scales(params, decay: float, depth: int):
    """decay^(depth + 1 - layer) for every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay ** (depth + 1 - layer_of(path_name(path), depth)), params
    )


# --- optimizers ------------------------------------------------------------------


def scale_by_tree(scales) -> optax.GradientTransformation:
    """Multiplies each update by its own constant; 1 leaves it untouched."""

    def update(updates, state, params=None):
        scaled = jax.tree.map(lambda u, s: u if s == 1 else u * s, updates, scales)
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


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


def adamw(lr, mask, *, b1: float, b2: float, eps: float, weight_decay: float):
    """Decoupled decay, multiplied by the scheduled rate (torch's AdamW)."""
    return optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def adam(lr, mask, *, b1: float, b2: float, eps: float, weight_decay: float):
    """Decay added to the gradient before the moments (torch's Adam)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.scale_by_learning_rate(lr),
    )


def sgd(lr, mask, *, momentum: float, weight_decay: float):
    """v <- momentum v + (g + wd p); p <- p - lr v (torch's SGD)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(momentum),
        optax.scale_by_learning_rate(lr),
    )


def lars(lr, mask, *, momentum: float, weight_decay: float, trust_coefficient: float):
    """MAE's LARS: decay and trust ratio where `mask` says, momentum before the rate.

    optax.lars multiplies by the rate before the momentum; with a schedule that is
    another optimizer.
    """
    trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(trust, mask),
        optax.trace(momentum),
        optax.scale_by_learning_rate(lr),
    )


def larc(
    lr, mask, *, momentum: float, weight_decay: float, trust_coefficient: float, eps
):
    """SwAV's LARC around SGD; it takes every tensor, whatever `mask` says."""
    return optax.chain(
        scale_by_larc(trust_coefficient, weight_decay, eps),
        optax.trace(momentum),
        optax.scale_by_learning_rate(lr),
    )


OPTIMIZERS = {"adamw": adamw, "adam": adam, "sgd": sgd, "lars": lars, "larc": larc}


def make(config: Mapping, schedule: Schedule, params) -> optax.GradientTransformation:
    """The optimizer of config.optim for `params` (arrays or shapes).

    decay_vectors, decay_exempt: see decay_mask. lr_rules: (regex, multiplier) pairs on
    parameter paths, the first match counts; 0 freezes bit for bit.
    """
    fields = dict(config)
    name = fields.pop("name")
    vectors, exempt, lr_rules = (
        fields.pop(k) for k in ("decay_vectors", "decay_exempt", "lr_rules")
    )
    check_name("optim.name", name, OPTIMIZERS)
    for regex in (*exempt, *(regex for regex, _ in lr_rules)):
        names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        if not any(re.search(regex, n) for n in names):
            raise UsageError(f"optim: the rule {regex!r} matches no parameter.")
    mask = decay_mask(params, vectors, exempt)
    tx = call("optim", OPTIMIZERS[name], fields, lr=schedule, mask=mask)
    if not lr_rules:
        return tx
    scales = jax.tree_util.tree_map_with_path(
        lambda path, _: first_match(path_name(path), lr_rules, 1.0), params
    )
    return optax.chain(tx, scale_by_tree(scales))
