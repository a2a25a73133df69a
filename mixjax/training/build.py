"""Builds the parts of a run and checks that they fit, before any long work."""

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
    """The parts of a run; none of its arrays exist yet."""

    mesh: object
    sets: data.Datasets
    clock: schedules.Clock
    network: Network
    method: Method
    schedule: schedules.Schedule
    optimizer: optax.GradientTransformation
    example: dict  # shapes of a batch of one example
    variables: Variables  # shapes of the method's initial variables
    init: Callable  # key -> the state before the first step
    layout: TrainState  # shapes and shardings of the state


def assemble(config, mesh, sets: data.Datasets) -> Assembly:
    """Builds all parts of config's run on `mesh`; UsageError if two do not fit."""
    clock = make_clock(config, sets.steps_per_epoch)
    network = models.make(config.model)
    example = sets.example(network.geometry)
    method = methods.make(config.method, network, clock=clock)
    check_fit(config, method, sets, mesh.size)
    schedule = schedules.make(config.schedule, batch=config.batch, clock=clock)

    # Shapes first, as the optimizer chooses by the parameters' names and the shardings
    # depend on the sizes of tensors; only `init`, when called, allocates memory.
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
    """The length of the run: config.epochs, or config.steps if that is set.

    With `steps` the whole recipe shrinks or stretches: schedules, warm-up and the
    intervals of evaluation and saving keep their share of the run.
    """
    if config.steps:
        return schedules.Clock(config.steps, config.steps / config.epochs)
    return schedules.Clock(round(config.epochs * steps_per_epoch), steps_per_epoch)


# --- checks ---------------------------------------------------------------------------


def check_fit(config, method: Method, sets: data.Datasets, devices: int) -> None:
    """Raises UsageError unless recipe, method, data and devices fit together."""
    check_classes(config.model, sets)
    check_parts(method.together, config.batch, devices, config.accumulate)


def check_parts(together: int, batch: int, devices: int, accumulate: int) -> None:
    """Raises UsageError if accumulation or devices would divide a group of examples.

    together: the size of the method's groups, see Method. A group that straddles two
    devices would be sent from one to the other at every step.
    """
    if together == ALL and accumulate > 1:
        raise UsageError(
            f"accumulate={accumulate}: this method compares all examples of a batch "
            f"with each other, so parts of a batch would have a different loss; only 1 "
            f"is possible."
        )
    multiple = max(together, 1) * devices * accumulate
    if batch % multiple:
        below = batch // multiple * multiple
        nearest = " or ".join(str(n) for n in (below, below + multiple) if n)
        raise UsageError(
            f"batch={batch} cuts groups of {together} examples: it is not a multiple "
            f"of {together} x {devices} devices x accumulate={accumulate}; take "
            f"{nearest}."
        )


def check_classes(model, sets: data.Datasets) -> None:
    """Raises UsageError unless all classifiers have the data's number of classes."""
    for name, section in model.items():
        classes = getattr(section, "classes", None)
        if classes is not None and classes != sets.classes:
            actual = f"{sets.classes} classes" if sets.classes else "no labels"
            raise UsageError(
                f"model.{name}.classes={classes}, but data.source has "
                f"{actual}{'; set it to that' if sets.classes else ''}."
            )


# --- sizes ----------------------------------------------------------------------------


def make_plan(config, run: Assembly) -> Plan:
    """Returns the sizes of the run and logs them."""
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
    peak = flops.peak(mesh.devices.flat[0])
    # Without a known peak there is no utilisation: save the time to count.
    step_flops = None if peak is None else count_step_flops(config, run)
    return Plan(
        total_steps=clock.total_steps,
        batch=config.batch,
        examples=sets.size,
        steps_per_epoch=sets.steps_per_epoch,
        tensor_names=list_tensors(variables.params),
        step_flops=step_flops,
        peak_flops=None if peak is None else peak * mesh.size,
    )


def count_step_flops(config, run: Assembly) -> float:
    """The floating-point operations of a step's matrix products.

    What rematerialisation computes a second time does not count: utilisation measures
    useful work.
    """
    network = models.make(without_remat(config.model))
    method = methods.make(config.method, network, clock=run.clock)

    def gradient(variables, batch):
        # Without an optimizer: its work is per parameter, not in matrix products.
        state = first_state(variables, optax.identity())
        key = jax.random.key(0)
        return jax.grad(lambda p: method.loss(p, state, batch, key)[0])(state.params)

    # The example's shapes are [1, ...], those of a batch [B, ...].
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype),
        run.example,
    )
    return flops.count(gradient, run.variables, batch)


def without_remat(model) -> dict:
    """The sections of config.model, with nothing computed twice or in a loop."""
    sections = model.to_dict()
    for section in filter(lambda value: isinstance(value, dict), sections.values()):
        # Only fields that the section has: not every backbone scans its layers.
        for field in section.keys() & {"remat", "scan"}:
            section[field] = "none" if isinstance(section[field], str) else False
    return sections


def list_tensors(params) -> list[str]:
    """The paths of all tensors, in the order of jax.tree.leaves."""
    return [meshes.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
