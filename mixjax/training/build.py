"""What a run is made of, put together and checked before any long work."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from mixjax import data, methods, models
from mixjax.errors import UsageError
from mixjax.optim import optimizers, schedules
from mixjax.profiling import flops
from mixjax.run.recorder import Plan
from mixjax.sharding import meshes
from mixjax.state import ALL, Method, Network, TrainState, Variables
from mixjax.training.initial_state import first_state, make_init

log = logging.getLogger("mixjax")


class Assembly(NamedTuple):
    """The parts of a run; no array has been made yet."""

    mesh: object
    sets: data.Datasets
    clock: schedules.Clock
    network: Network
    method: Method
    schedule: schedules.Schedule
    optimizer: optax.GradientTransformation
    example: dict  # shapes of a batch of one
    variables: Variables  # shapes of what the method starts from
    init: Callable  # key -> the state before the first step
    layout: TrainState  # shapes of the state, and where they lie


def assemble(config, mesh, sets: data.Datasets) -> Assembly:
    """Builds all parts of config's run on `mesh`; UsageError if two do not fit."""
    clock = make_clock(config, sets.steps_per_epoch)
    network = models.make(config.model)
    example = sets.example(network.geometry)
    method = methods.make(config.method, network, clock=clock)
    check_fit(config, method, sets, mesh.size)
    schedule = schedules.make(config.schedule, batch=config.batch, clock=clock)

    # Shapes first, then where they lie.
    key = jax.random.key(config.seed)
    variables = jax.eval_shape(method.init, key, example)
    optimizer = optimizers.make(config.optim, schedule, variables.params, clock=clock)
    init = make_init(method, optimizer, example)
    layout = meshes.lay_out(mesh, jax.eval_shape(init, key), config.mesh.rules)
    return Assembly(
        mesh=mesh,
        sets=sets,
        clock=clock,
        network=network,
        method=method,
        schedule=schedule,
        optimizer=optimizer,
        example=example,
        variables=variables,
        init=init,
        layout=layout,
    )


def make_clock(config, steps_per_epoch: int) -> schedules.Clock:
    """How long the run is: config.epochs, or config.steps where that is set.

    With `steps` the whole recipe shrinks or stretches: schedules, warm-up and the
    intervals of evaluation and saving keep their share of the run.
    """
    if config.steps:
        return schedules.Clock(config.steps, config.steps / config.epochs)
    return schedules.Clock(round(config.epochs * steps_per_epoch), steps_per_epoch)


def check_fit(config, method: Method, sets: data.Datasets, devices: int) -> None:
    """UsageError unless recipe, method, data and devices go together."""
    check_classes(config.model, sets)
    check_parts(method.together, config.batch, devices, config.accumulate)


def check_parts(together: int, batch: int, devices: int, accumulate: int) -> None:
    """UsageError if a part of the batch, or a device, would cut what is a unit.

    together: as Method has it. A group that straddled two devices would be sent from
    one to the other at every step.
    """
    if together == ALL and accumulate > 1:
        raise UsageError(
            f"accumulate={accumulate}: this method compares the examples of a batch "
            f"with each other, so its parts are another loss; only 1 is possible."
        )
    unit = max(together, 1) * devices * accumulate
    if batch % unit:
        low = batch // unit * unit
        fits = " or ".join(str(n) for n in (low, low + unit) if n)
        raise UsageError(
            f"batch={batch} cuts groups of {together} examples: it is not a multiple "
            f"of {together} x {devices} devices x accumulate={accumulate}; take {fits}."
        )


def check_classes(model, sets: data.Datasets) -> None:
    """UsageError unless what tells classes apart has those of the data."""
    for name, section in model.items():
        wanted = getattr(section, "classes", None)
        if wanted is not None and wanted != sets.classes:
            has = f"{sets.classes} classes" if sets.classes else "no labels"
            raise UsageError(
                f"model.{name}.classes={wanted}, but data.source has "
                f"{has}{'; set it to that' if sets.classes else ''}."
            )


def make_plan(config, run: Assembly) -> Plan:
    """What lies ahead in numbers; says it, too."""
    mesh, clock, sets, variables = run.mesh, run.clock, run.sets, run.variables
    log.info("devices: %s", meshes.describe(mesh))
    log.info("data: %s", sets.describe())
    for part, tree in variables.params.items():
        size = sum(x.size for x in jax.tree.leaves(tree))
        log.info("%s: %.2f M parameters", part, size / 1e6)
    log.info(
        "plan: %d steps of %d examples, %d on each device; %.4g epochs of the data",
        clock.total_steps,
        config.batch,
        config.batch // mesh.size,
        clock.total_steps / sets.steps_per_epoch,
    )
    return Plan(
        total_steps=clock.total_steps,
        batch=config.batch,
        examples=sets.size,
        steps_per_epoch=sets.steps_per_epoch,
        tensors=names(variables.params),
        **speed(config, mesh, clock, variables, run.example),
    )


def speed(config, mesh, clock, variables: Variables, example: dict) -> dict:
    """{"work": matrix operations of a step, "peak": what the devices could do}.

    Both None where the peak is not known. What rematerialisation computes again does
    not count as work.
    """
    peak = flops.peak(mesh.devices.flat[0])
    if peak is None:
        return {"work": None, "peak": None}
    model = config.model.to_dict()
    for part in model.values():
        if isinstance(part, dict) and "remat" in part:
            part |= {"remat": "none", "scan": False}
    network = models.make(model)
    method = methods.make(config.method, network, clock=clock)

    def gradient(variables, batch):
        state = first_state(variables, optax.identity())
        key = jax.random.key(0)
        return jax.grad(lambda p: method.loss(p, state, batch, key)[0])(state.params)

    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype), example
    )
    work = flops.count(gradient, variables, rows)
    return {"work": work, "peak": peak * mesh.size}


def names(params) -> list[str]:
    """The paths of all tensors, in the order of jax.tree.leaves."""
    return [meshes.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
