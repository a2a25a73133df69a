"""What a run is made of: each part tried, and all of them together."""

import jax
from ml_collections import ConfigDict

from mixjax import evals
from mixjax.doctor.findings import Findings
from mixjax.optim import optimizers, schedules
from mixjax.sharding import meshes
from mixjax.state import ALL, Clock, Method, Network
from mixjax.training import build, initial_state

ANY = Clock(1000, 10.0)  # for parts that are only looked at


def make_mesh(found: Findings, config):
    """The mesh of the recipe, or one of plain copies if that cannot be."""
    mesh = found.attempt(meshes.make, fsdp=config.mesh.fsdp) or meshes.make(fsdp=1)
    found.fact("devices", f"counted for {meshes.describe(mesh)}, simulated")
    return mesh


def describe(found: Findings, config, network: Network) -> None:
    """What the network looks at, and through which views."""
    geometry = network.geometry
    sizes = (*geometry.image_size, geometry.channels)
    found.fact(
        "pictures",
        f"{' x '.join(map(str, sizes))} in patches of {geometry.patch}: "
        f"{geometry.grid[0]} x {geometry.grid[1]} tokens; "
        f"{len(config.data.views)} to an example",
    )


def with_batches_that_fit(found: Findings, config, mesh, method: Method | None):
    """A copy of `config` whose batches go through, its own if they do."""
    own, parts = config.batch, max(config.accumulate, 1)
    together = method.together if method else 1
    divides = found.holds(meshes.check_batch, mesh, own, config.accumulate)
    # What has been refused is not refused twice: 0 is a multiple of anything.
    rest = together, own if divides else 0, mesh.size, parts
    fits = found.holds(build.check_parts, *rest)
    safe = ConfigDict(config.to_dict())
    if not (divides and fits):
        safe.accumulate = 1 if together == ALL else parts
        unit = max(together, 1) * mesh.size * safe.accumulate
        safe.batch = max(own // unit, 1) * unit
        found.fact("batch", f"counted with {safe.batch}, since {own} does not go")
    at_once = config.data.eval_batch
    if not found.holds(meshes.check_batch, mesh, at_once, 1, "data.eval_batch"):
        safe.data.eval_batch = max(at_once // mesh.size, 1) * mesh.size
    return safe


def assemble(found: Findings, config, mesh, sets, network: Network, method):
    """The Assembly of a run, or None once all that is wrong with its parts is said."""
    run = found.attempt(build.assemble, config, mesh, sets)
    if run is None and method is not None:
        each(found, config, mesh, sets, network, method)
    return run


def each(found: Findings, config, mesh, sets, network: Network, method: Method) -> None:
    """Tries one by one what assemble() tries in turn, and would stop at."""
    clock = build.make_clock(config, sets.steps_per_epoch)
    how = dict(batch=config.batch, clock=clock)
    schedule = found.attempt(schedules.make, config.schedule, **how)
    key, example = jax.random.key(config.seed), sets.example(network.geometry)
    variables = found.attempt(jax.eval_shape, method.init, key, example)
    if variables is None:
        return
    schedule = schedule or schedules.Rate(lambda step: 0.0, 0.0)
    parts = config.optim, schedule, variables.params
    found.attempt(optimizers.make, *parts, clock=clock)
    found.attempt(meshes.lay_out, mesh, variables, config.mesh.rules)


def evaluators(found: Findings, config, run, sets, workdir: str) -> None:
    """Tries each of config.evals."""
    how = dict(clock=run.clock, sets=sets, method=run.method, network=run.network)
    how |= dict(mesh=run.mesh, workdir=workdir, check=lambda: None, recipe=config)
    for name, section in config.evals.items():
        found.attempt(evals.make, {name: section}, **how)


def plan(found: Findings, config, run, known: bool) -> None:
    """The learning rate, the length, and the parameters in numbers.

    known: whether the data says how many steps an epoch has.
    """
    schedule, clock = config.schedule, run.clock
    rule = "1" if schedule.rule == "none" else schedule.rule
    in_parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    on_each = config.batch // run.mesh.size
    found.fact("batch", f"{config.batch} examples, {on_each} on a device{in_parts}")
    found.fact(
        "rate",
        f"base {schedule.base:g} x {rule} (effective batch {config.batch}) = "
        f"{run.schedule.peak:g}; {schedule.name}, {schedule.warmup_epochs:g} epochs "
        f"of warm-up",
    )
    if known or config.steps:
        total = clock.total_steps
        seen = f"{total} steps, {total * config.batch:,} examples"
        found.fact(
            "length",
            f"{seen}; an epoch of the schedules is {clock.steps_per_epoch:g} steps",
        )
    else:
        found.fact(
            "length", f"{config.epochs:g} epochs; steps are not known without data"
        )
    for part, tree in run.variables.params.items():
        size = sum(x.size for x in jax.tree.leaves(tree))
        found.fact("parameters", f"{part} {size / 1e6:.2f} M")


def borrowed(found: Findings, config, run) -> None:
    """Tries init_from, on one device."""
    if config.init_from:
        one = jax.numpy.zeros(()).sharding
        put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
        got = found.attempt(initial_state.borrow, config, jax.tree.map(put, run.layout))
        if got:
            taken = ", ".join(got[0]["params"])
            found.fact("init_from", f"{config.init_from} gives {taken}")
