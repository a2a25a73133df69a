"""The components of a run: tried together, and one by one where that fails."""

import jax
from ml_collections import ConfigDict

from mixjax import evals
from mixjax.doctor.findings import Findings
from mixjax.optim import optimizers, schedules
from mixjax.sharding import meshes
from mixjax.state import ALL, Clock, Method, Network
from mixjax.training import build, warm_start

ANY = Clock(1000, 10.0)  # for components that are constructed but never run


def make_mesh(findings: Findings, config):
    """The mesh of the recipe, or one without sharding if the recipe's does not fit."""
    mesh = findings.attempt(meshes.make, fsdp=config.mesh.fsdp) or meshes.make(fsdp=1)
    findings.fact("devices", f"{meshes.describe(mesh)}, simulated on the CPU")
    return mesh


def describe(findings: Findings, config, network: Network) -> None:
    """Reports the size of images, the grid of tokens, and the number of views."""
    geometry = network.geometry
    sizes = (*geometry.image_size, geometry.channels)
    findings.fact(
        "pictures",
        f"{' x '.join(map(str, sizes))} in patches of {geometry.patch}: "
        f"{geometry.grid[0]} x {geometry.grid[1]} tokens; "
        f"{len(config.data.views)} per example",
    )


def with_batches_that_fit(findings: Findings, config, mesh, method: Method | None):
    """A copy of `config`, with batch sizes that fit in place of those that do not."""
    batch, parts = config.batch, max(config.accumulate, 1)
    together = method.together if method else 1
    divides = findings.holds(meshes.check_batch, mesh, batch, config.accumulate)
    # 0 is a multiple of anything, so a batch already refused is not refused twice.
    checked = batch if divides else 0
    fits = findings.holds(build.check_parts, together, checked, mesh.size, parts)
    safe = ConfigDict(config.to_dict())
    if not (divides and fits):
        safe.accumulate = 1 if together == ALL else parts
        unit = max(together, 1) * mesh.size * safe.accumulate
        safe.batch = max(batch // unit, 1) * unit
        findings.fact("batch", f"{batch} does not fit; {safe.batch} is assumed below")
    eval_batch = config.data.eval_batch
    if not findings.holds(meshes.check_batch, mesh, eval_batch, 1, "data.eval_batch"):
        safe.data.eval_batch = max(eval_batch // mesh.size, 1) * mesh.size
    return safe


def assemble(findings: Findings, config, mesh, sets, network: Network, method):
    """The Assembly of a run; None if it fails, with the problem of every component."""
    run = findings.attempt(build.assemble, config, mesh, sets)
    if run is None and method is not None:
        try_each(findings, config, mesh, sets, network, method)
    return run


def try_each(
    findings: Findings, config, mesh, sets, network: Network, method: Method
) -> None:
    """Tries the components separately, since assemble() stops at the first failure."""
    clock = build.make_clock(config, sets.steps_per_epoch)
    schedule = findings.attempt(
        schedules.make, config.schedule, batch=config.batch, clock=clock
    )
    key, example = jax.random.key(config.seed), sets.example(network.geometry)
    variables = findings.attempt(jax.eval_shape, method.init, key, example)
    if variables is None:
        return
    schedule = schedule or schedules.Rate(lambda step: 0.0, 0.0)
    params = variables.params
    findings.attempt(optimizers.make, config.optim, schedule, params, clock=clock)
    findings.attempt(meshes.lay_out, mesh, variables, config.mesh.rules)


def evaluators(findings: Findings, config, run, sets, workdir: str) -> None:
    """Constructs each of config.evals."""
    context = dict(clock=run.clock, sets=sets, method=run.method, network=run.network)
    context |= dict(mesh=run.mesh, workdir=workdir, check=lambda: None, recipe=config)
    for name, section in config.evals.items():
        findings.attempt(evals.make, {name: section}, **context)


def plan(findings: Findings, config, run, known: bool) -> None:
    """Reports the batch, the learning rate, the length, and the parameter counts.

    known: whether the number of steps in an epoch is known, that is, the data is there.
    """
    schedule, clock = config.schedule, run.clock
    rule = "1" if schedule.rule == "none" else schedule.rule
    in_parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    on_each = config.batch // run.mesh.size
    findings.fact("batch", f"{config.batch} examples, {on_each} per device{in_parts}")
    findings.fact(
        "rate",
        f"base {schedule.base:g} x {rule} (effective batch {config.batch}) = "
        f"{run.schedule.peak:g}; {schedule.name}, {schedule.warmup_epochs:g} epochs "
        f"of warm-up",
    )
    if known or config.steps:
        total = clock.total_steps
        steps = f"{total} steps, {total * config.batch:,} examples"
        findings.fact(
            "length",
            f"{steps}; an epoch of the schedules is {clock.steps_per_epoch:g} steps",
        )
    else:
        findings.fact(
            "length",
            f"{config.epochs:g} epochs; the steps are not known without the data",
        )
    for part, tree in run.variables.params.items():
        size = sum(x.size for x in jax.tree.leaves(tree))
        findings.fact("parameters", f"{part} {size / 1e6:.2f} M")


def borrowed(findings: Findings, config, run) -> None:
    """Reads the parameters that init_from names, onto one device."""
    if config.init_from:
        # One device is enough to see whether they can be read and fit the network.
        sharding = jax.numpy.zeros(()).sharding
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        layout = jax.tree.map(place, run.layout)
        borrowed_state = findings.attempt(warm_start.warm_start, config, layout)
        if borrowed_state:
            names = ", ".join(borrowed_state[0]["params"])
            findings.fact("init_from", f"{config.init_from} provides {names}")
