"""Learning rates, and other numbers, as functions of the step.

A `Clock` turns a recipe's epochs into steps. The schedule of each paper is one of three
shapes after a linear warm-up; the fields describe how its code counts time.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.config.registry import call, take
from mixjax.errors import UsageError, check_name
from mixjax.state import Clock

Array = jax.Array
Schedule = Callable[[Array], Array]
log = logging.getLogger("mixjax")


@dataclasses.dataclass(frozen=True)
class Rate:
    """A learning rate: a function of the step that knows its peak."""

    at: Schedule
    peak: float

    def __call__(self, step: Array) -> Array:
        return self.at(step)


def epoch_of(step: Array, clock: Clock, *, per: str, first: int) -> Array:
    """The time that a schedule is evaluated at, in epochs.

    per: "step" gives step / steps_per_epoch; "epoch" gives its whole part plus `first`,
    the number of the first epoch (0, or 1 where the code counts from 1).
    """
    if per == "step":
        return step / clock.steps_per_epoch
    if float(clock.steps_per_epoch).is_integer():
        return step // int(clock.steps_per_epoch) + first
    # Tabulated beforehand: a division on the device may round to the wrong side.
    ends = np.arange(1, math.ceil(clock.epochs) + 1) * clock.steps_per_epoch
    return jnp.searchsorted(np.ceil(ends - 1e-6), step, side="right") + first


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
        end = max(clock.epochs, begin + tick)  # a run may be warm-up alone
        return cosine(time, peak=peak, floor=floor, start=begin, end=end)

    fields = peak, warmup_epochs, warmup_start, warmup_rule, per, first_epoch
    return _after_warmup(clock, fall, *fields, times_fall=False)


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

    fields = peak, warmup_epochs, warmup_start, warmup_rule, per, first_epoch
    return _after_warmup(clock, fall, *fields, times_fall=False)


def warmup_polynomial(
    clock: Clock,
    *,
    peak: float,
    floor: float,
    power: float,
    warmup_epochs: float,
    warmup_start: float,
    warmup_rule: str,
    per: str,
    first_epoch: int,
) -> Schedule:
    """floor + (peak - floor) (1 - time / length of the run)^power from the first step.

    While it lasts, the warm-up multiplies it by the share of the peak that it has
    reached (mmsegmentation 0.x).
    """

    def fall(time, tick):
        left = jnp.maximum(1 - time / clock.epochs, 0.0)
        return floor + (peak - floor) * left**power

    fields = peak, warmup_epochs, warmup_start, warmup_rule, per, first_epoch
    return _after_warmup(clock, fall, *fields, times_fall=True)


def _after_warmup(
    clock, fall, peak, length, start, rule, per, first, *, times_fall
) -> Schedule:
    check_name("schedule.per", per, ["step", "epoch"])
    check_name("schedule.warmup_rule", rule, WARMUP_RULES)
    tick = 1 / clock.steps_per_epoch if per == "step" else 1.0

    def schedule(step):
        time = epoch_of(step, clock, per=per, first=first)
        climb, then = warmup(time, start, peak, length, rule, tick), fall(time, tick)
        climb = climb * (then / peak) if times_fall else climb
        return jnp.where(time < length - tick / 2, climb, then)

    return schedule


def momentum(momentum: float, rule: str, per: str, clock: Clock) -> Schedule:
    """A teacher's momentum after each step.

    rule: "constant", or "cosine", from `momentum` at the start to 1 at the end of the
    run (BYOL, section 3.2). per: see epoch_of; HTDT's code counts whole epochs from 0.
    """
    check_name("teacher.rule", rule, ["constant", "cosine"])
    check_name("teacher.per", per, ["step", "epoch"])
    if not 0 <= momentum <= 1:
        raise UsageError(f"teacher.momentum={momentum} must lie in 0 .. 1.")
    if rule == "constant":
        return lambda step: momentum

    def rise(step):
        time = epoch_of(step, clock, per=per, first=0)
        return 1.0 - cosine(
            time, peak=1.0 - momentum, floor=0.0, start=0.0, end=clock.epochs
        )

    return rise


SCHEDULES = {
    "cosine": warmup_cosine,
    "steps": warmup_steps,
    "polynomial": warmup_polynomial,
}


def make(config: Mapping, *, batch: int, clock: Clock) -> Rate:
    """The learning-rate schedule of config.schedule; logs the resulting rate.

    `base` and the other rates are multiplied by batch / 256, batch / 512 or 1, as
    `rule` says: papers state the base, and mean different batches by it.
    """
    divisors = {"batch/256": 256, "batch/512": 512, "none": batch}
    fields = dict(config)
    name, base, rule = take("schedule", fields, "name", "base", "rule")
    check_name("schedule.rule", rule, divisors)
    check_name("schedule.name", name, SCHEDULES)
    scale = batch / divisors[rule]
    for key in ("floor", "warmup_start"):
        if key in fields:
            fields[key] = fields[key] * scale
    schedule = call("schedule", SCHEDULES[name], fields, clock=clock, peak=base * scale)
    warm = round(config["warmup_epochs"] * clock.steps_per_epoch)
    log.info(
        "learning rate: base %g x %s (effective batch %d) = %g; %s over %d steps, "
        "of which %d warm up",
        base,
        rule if rule != "none" else "1",
        batch,
        base * scale,
        name,
        clock.total_steps,
        min(warm, clock.total_steps),
    )
    if warm >= clock.total_steps:
        log.warning("schedule.warmup_epochs: the run ends before the warm-up does")
    return Rate(schedule, base * scale)
