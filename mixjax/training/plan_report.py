"""The plan of a step for other chips, in words."""

from mixjax import models
from mixjax.chips.targets import Target
from mixjax.data import sources, stand_in
from mixjax.errors import UsageError
from mixjax.profiling import device_memory
from mixjax.training.explain_step import describe_step
from mixjax.training.plan_step import StepPlan, plan_step

GIB = 2**30


def describe_plan(plan: StepPlan) -> list[str]:
    """Lines on memory, time, communication, and where the time goes."""
    chip, count, cost = plan.target.chip, plan.target.count, plan.cost
    if cost is None:
        return [f"{count} x {chip.kind}: the step does not compile: {plan.refused}"]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return [
        f"{count} x {chip.kind}, a batch of {plan.batch}, compiled in "
        f"{plan.step.seconds:.0f} s",
        f"memory: {verdict}: {describe_memory(plan)} on each",
        *describe_time(plan),
        f"links: {device_memory.text(cost.sent)} in collectives on each, "
        f"{1e3 * cost.links_seconds:.1f} ms at least, if nothing overlaps",
        *(
            f"{100 * place.share:.0f} % of the time: {place.line} ({place.kinds})"
            for place in cost.places
        ),
    ]


def describe_memory(plan: StepPlan) -> str:
    """Such as "11.12 of 15.75 GiB"."""
    return f"{plan.memory / GIB:.2f} of {plan.target.chip.memory / GIB:.2f} GiB"


def describe_time(plan: StepPlan) -> list[str]:
    """Lines on the time of a step and of the whole recipe, by each estimate."""
    cost, count = plan.cost, plan.target.count
    estimates = {"at least, by the roofline": cost.roofline_seconds}
    if cost.cycles_seconds:
        estimates["by the compiler's cycles"] = cost.cycles_seconds
    lines = [
        f"a step: {1e3 * seconds:.1f} ms {name}: {plan.batch / seconds:,.0f} images/s, "
        f"MFU {plan.utilisation(seconds):.2f}"
        for name, seconds in estimates.items()
    ]
    hours = plan.total_steps * max(cost.seconds, cost.links_seconds) / 3600
    return [
        *lines,
        f"the recipe: {plan.total_steps:,} steps, {hours:,.1f} hours, "
        f"{hours * count:,.0f} chip-hours by {list(estimates)[-1].split()[-1]}",
    ]


def explain_for(config, target: Target) -> list[str]:
    """As explain_step.explain, for a target, with its plan; UsageError likewise."""
    fields, geometry = config.data, models.make(config.model).geometry
    try:
        train = sources.open_source(fields.source, fields.split, fields.directory)
    except UsageError:  # to compile for other machines needs no data on this one
        train = None
    source = stand_in.compiling_source(config, train, geometry)
    plan = plan_step(config, source, target)
    lines = [] if plan.step is None else describe_step(plan.step)
    return [*lines, f"estimates for {target.text}:", *describe_plan(plan)]
