"""Plans a recipe's step for chips that are not there: does it fit, how fast is it?

The step is the one that training would run, compiled for the devices of a target (see
chips/). Whatever is advised has been compiled too.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mixjax import methods, models
from mixjax.chips import estimate, targets
from mixjax.chips.estimate import Estimate
from mixjax.chips.targets import Target
from mixjax.data.source import Source
from mixjax.errors import UsageError
from mixjax.sharding import meshes
from mixjax.state import ALL, Clock
from mixjax.training import build, explain_step

TRIES = 3  # corrections of the largest batch
REMEDIES = 6  # changes that are compiled at most to make a step fit


class StepPlan(NamedTuple):
    """A step compiled for a target, or the reason why it could not be."""

    target: Target
    batch: int
    total_steps: int
    step: explain_step.Step | None
    cost: Estimate | None
    refused: str  # by the compiler; "" if it was not
    memory: int | None  # bytes that the step needs on each device; None if unknown
    useful_flops: float  # of products on each device, without what remat repeats

    @property
    def fits(self) -> bool:
        """Whether the step was compiled and fits in the memory of a device."""
        return bool(self.cost) and self.memory <= self.target.chip.memory

    def utilisation(self, seconds: float) -> float:
        """The share of the chip's peak that a step of this length makes use of."""
        return self.useful_flops / seconds / self.target.chip.peak


def plan_step(config, source: Source, target: Target) -> StepPlan:
    """Compiles the step of config's run for `target`.

    source: of the pictures, or a stand-in of the same size. UsageError as in training,
    such as for a batch that the devices do not divide.
    """
    devices = targets.devices(target)
    mesh = meshes.make(fsdp=config.mesh.fsdp, devices=devices)
    meshes.check_batch(mesh, config.batch, config.accumulate)
    empty = StepPlan(target, config.batch, 0, None, None, "", None, 0.0)
    try:
        step = explain_step.compile_step(config, source, {}, devices)
    except jax.errors.JaxRuntimeError as error:
        memory = estimate.needed_memory(error)
        return empty._replace(refused=str(error).splitlines()[0], memory=memory)
    cost = estimate.estimate(step.code, step.memory, target)
    return empty._replace(
        total_steps=step.run.clock.total_steps,
        step=step,
        cost=cost,
        memory=cost.peak_memory,
        useful_flops=build.count_step_flops(config, step.run) / target.count,
    )


# --- the largest batch ----------------------------------------------------------------


def changed(config, **fields) -> ConfigDict:
    """A copy of `config` with other values; dots in names are written as __."""
    copy = ConfigDict(config.to_dict())
    named = {name.replace("__", "."): value for name, value in fields.items()}
    copy.update_from_flattened_dict(named)
    return copy


def count_together(config) -> int:
    """Method.together of the recipe's method."""
    clock = Clock(1000, 10.0)  # of a run that never begins
    return methods.make(config.method, models.make(config.model), clock=clock).together


def batch_unit(config, target: Target) -> int:
    """What a batch must be a multiple of: groups of examples on each device."""
    together = count_together(config)
    return (1 if together == ALL else together) * target.count * config.accumulate


def largest_batch(config, source: Source, plan: StepPlan, say: Callable) -> StepPlan:
    """The plan of the largest batch that fits, by a line through two plans.

    plan: of config's own batch. say: called with a line before each compilation. The
    line is checked by compiling, and lowered until it holds. A recipe may refuse a
    batch, such as one that does not divide its queue; then the powers of two below are
    tried.
    """
    target, unit = plan.target, batch_unit(config, plan.target)
    units = config.batch // unit
    plans = {units: plan}  # by the batch in units

    def add_plan(number: int) -> None:
        fitting = max((n for n, p in plans.items() if p.fits), default=0)
        while number not in plans:
            say(f"a batch of {number * unit}")
            other = changed(config, batch=number * unit)
            try:
                plans[number] = plan_step(other, source, target)
            except UsageError:
                number = 2 ** ((number - 1).bit_length() - 1) if number > 1 else 0
                if number <= fitting:
                    return

    add_plan(units // 2 if units > 1 else 2)
    for _ in range(TRIES):
        number = next_batch(plans, target.chip.memory, source.size // unit)
        if number is None:
            break
        add_plan(number)
        if plans[max(plans)].fits:
            break
    fitting = [number for number in plans if plans[number].fits]
    return plans[max(fitting) if fitting else min(plans)]


def next_batch(plans: dict[int, StepPlan], memory: int, most: int) -> int | None:
    """The largest batch that should fit, in units; None if it is known already.

    memory: bytes of a device. most: units in the whole data.
    """
    known = sorted((number, p.memory) for number, p in plans.items() if p.memory)
    if len(known) < 2:
        return None
    (low, low_memory), (high, high_memory) = known[0], known[-1]
    each = (high_memory - low_memory) / (high - low)
    if each <= 0:
        return None
    refused = [number - 1 for number, p in plans.items() if not p.fits]
    number = min([math.floor(low + (memory - low_memory) / each), most, *refused])
    fitting = max((number for number, p in plans.items() if p.fits), default=0)
    return number if number > fitting else None


# --- what would fit -------------------------------------------------------------------


def remedies(config, target: Target) -> Iterator[tuple[str, dict]]:
    """(as flags, as fields) of changes that save memory, the cheapest first."""
    flags = lambda fields: " ".join(
        f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()
    )
    remat = {
        f"model__{name}__remat": "block"
        for name, section in config.model.items()
        if hasattr(section, "get") and section.get("remat") == "none"
    }
    fsdp = math.gcd(target.count, 8)
    split = (
        {"mesh__fsdp": fsdp} if config.mesh.rules and config.mesh.fsdp < fsdp else {}
    )
    parts = [{"accumulate": config.accumulate * n} for n in (2, 4, 8)]
    method = methods.make(
        config.method, models.make(config.model), clock=Clock(1000, 10.0)
    )
    if method.together == ALL:  # accumulation would change the loss
        parts = []
    tries = [*parts[:1], remat, split, remat | split, *parts[1:]]
    tries += [remat | split | part for part in parts[1:]]
    for fields in tries:
        if fields:
            yield flags(fields), fields


def find_remedy(
    config, source: Source, target: Target, say: Callable
) -> tuple[str, StepPlan] | None:
    """The first change with which the step fits: (its flags, its plan), or None.

    The batch stays as it is. say: called with a line before each compilation.
    """
    tried = set()
    for flags, fields in remedies(config, target):
        if flags in tried or len(tried) == REMEDIES:
            continue
        tried.add(flags)
        try:
            say(flags)
            plan = plan_step(changed(config, **fields), source, target)
        except UsageError:  # such as a batch that more parts do not divide
            continue
        if plan.fits:
            return flags, plan
    return None
