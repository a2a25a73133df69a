"""The training step and the loop around it: the only ones in the project."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from mixjax import (
    data,
    evals,
    flops,
    groups,
    ledger,
    logs,
    meshes,
    methods,
    models,
    optim,
    schedules,
)
from mixjax.checkpoint import Checkpoints, by_path, taken, warm_start
from mixjax.errors import UsageError
from mixjax.export import foreign, weights
from mixjax.interrupts import Interrupt
from mixjax.models import transfer
from mixjax.state import ALL, Method, TrainState, Variables, step_key
from mixjax.workdir import Workdir, origin

Array = jax.Array
log = logging.getLogger("mixjax")


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    schedule: schedules.Schedule,
    augment: Callable,
    config,
) -> Callable:
    """The pure step (state, batch, resident) -> (state, metrics).

    metrics: scalars, and "grad_squares", the squared gradient norm of every tensor.
    config.accumulate: parts in which the batch goes through, one after the other; the
    gradient is the mean of theirs.
    """
    accumulate = config.accumulate

    def gradient(state, batch, resident, rng):
        batch = augment(batch, resident, rng)
        both = jax.value_and_grad(method.loss, has_aux=True)
        (loss, aux), grads = both(state.params, state, batch, rng)
        return grads, aux.stats, ({"loss": loss, **aux.metrics}, aux.carry)

    def accumulated(state, batch, resident, rng):
        def add(carry, part):
            total, stats = carry
            now = state.replace(stats=stats)
            grads, stats, rest = gradient(now, part, resident, rng)
            return (jax.tree.map(jnp.add, total, grads), stats), rest

        parts = jax.tree.map(lambda x: groups.deal(x, accumulate), batch)
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, stats), rest = jax.lax.scan(add, (zeros, state.stats), parts)
        grads = jax.tree.map(lambda g: g / accumulate, total)
        return grads, stats, jax.tree.map(lambda x: x.mean(axis=0), rest)

    def step(state: TrainState, batch: dict, resident: dict):
        rng = step_key(config.seed, state.step)
        run = gradient if accumulate == 1 else accumulated
        grads, stats, (metrics, carry) = run(state, batch, resident, rng)
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            stats=stats,
        )
        return method.update(state, carry), {
            **metrics,
            "lr": rate,
            "grad_squares": squares,
        }

    return step


def make_clock(config, steps_per_epoch: int) -> schedules.Clock:
    """How long the run is: config.epochs, or config.steps where that is set.

    With `steps` the whole recipe shrinks or stretches: schedules, warm-up and the
    intervals of evaluation and saving keep their share of the run.
    """
    if config.steps:
        return schedules.Clock(config.steps, config.steps / config.epochs)
    return schedules.Clock(round(config.epochs * steps_per_epoch), steps_per_epoch)


def first_state(variables: Variables, optimizer) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables.params,
        opt_state=optimizer.init(variables.params),
        stats=variables.stats,
        teacher=variables.teacher,
        memory=variables.memory,
    )


def make_init(method: Method, optimizer, example: dict) -> Callable:
    """The pure function key -> the state before the first step."""

    def init(key):
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        variables = method.init(key, blank)
        return first_state(variables, optimizer)

    return init


def begin(config, saved: Checkpoints, init: Callable, layout, examples: int) -> tuple:
    """(state, notes): the newest checkpoint's, or else a new state's.

    layout: shapes and shardings; a new state is born on them, a saved one read there.
    examples: in the training set, which must be as many as before.
    """
    step = saved.latest()
    if step is not None:
        log.info("continuing from the checkpoint of step %d", step)
        state, notes = saved.restore(step, layout)
        if notes["examples"] != examples:
            raise UsageError(
                f"data.source has {examples} training examples now but had "
                f"{notes['examples']} when this run began; take another --workdir."
            )
        return state, notes
    given = borrow(config, layout) if config.init_from else {}
    shardings = jax.tree.map(lambda s: s.sharding, layout)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(config.seed))
    new = {kind: overlay(getattr(state, kind), part) for kind, part in given.items()}
    return state.replace(**new), {"window": [], "metrics_bytes": 0, "evaluated": []}


def borrow(config, layout) -> dict:
    """{"params", "stats"} that config.init_from, the workdir of a run, has for us.

    It may also be a file of weights, of our own or of other projects.
    """
    model, kinds = config.model.to_dict(), ("params", "stats")
    wanted = {kind: getattr(layout, kind) for kind in kinds}
    path = Path(config.init_from).expanduser()
    if not path.is_file():
        fit = transfer.fitter(origin(config.init_from)["model"], model)
        return warm_start(config.init_from, wanted, fit)
    found = foreign.read(path, f"init_from={config.init_from}", model)
    trees = dict(zip(kinds, weights.trees(found.arrays), strict=True))
    arrays = lambda kind, part: by_path(trees[kind].get(part, {}))
    fit = transfer.fitter(found.model, model)
    return taken(
        config.init_from, list(trees["params"]), arrays, wanted, fit, str(path)
    )


def overlay(tree: dict, given: dict) -> dict:
    """`tree` with the leaves of `given` put in."""
    both = lambda old, new: overlay(old, new) if isinstance(new, dict) else new
    return tree | {k: both(tree[k], v) for k, v in given.items()}


def names(params) -> list[str]:
    """The paths of all tensors, in the order of jax.tree.leaves."""
    return [meshes.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]


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


def check_fit(config, method: Method, sets: data.Datasets, devices: int) -> None:
    """UsageError unless recipe, method, data and devices go together."""
    check_classes(config.model, sets)
    check_parts(method.together, config.batch, devices, config.accumulate)


def check_classes(model, sets: data.Datasets) -> None:
    """UsageError unless a classifier has the classes of the data."""
    if "classifier" in model and model.classifier.classes != sets.classes:
        has = f"{sets.classes} classes" if sets.classes else "no labels"
        raise UsageError(
            f"model.classifier.classes={model.classifier.classes}, but data.source has "
            f"{has}{'; set it to that' if sets.classes else ''}."
        )


def make_plan(
    config, mesh, clock, sets: data.Datasets, variables, example
) -> logs.Plan:
    """What lies ahead in numbers; says it, too."""
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
    return logs.Plan(
        total_steps=clock.total_steps,
        batch=config.batch,
        examples=sets.size,
        steps_per_epoch=sets.steps_per_epoch,
        tensors=names(variables.params),
        **speed(config, mesh, clock, variables, example),
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


def open_checkpoints(config, clock, folder: Path) -> Checkpoints:
    """The checkpoints of a run, as config.checkpoint has them in epochs."""
    return Checkpoints(
        folder,
        every=clock.steps(config.every_epochs),
        last=clock.total_steps,
        keep=config.keep,
        keep_every=clock.steps(config.keep_every_epochs),
    )


def jit_step(step: Callable, mesh, layout) -> Callable:
    """Compiles `step` once: state as `layout`, batch cut over `mesh`, state donated."""
    state = jax.tree.map(lambda s: s.sharding, layout)
    everywhere, cut = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        step,
        in_shardings=(state, cut, everywhere),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )


def train(config, workdir: Workdir, stop: Interrupt) -> None:
    """Runs the recipe to its end, from wherever `workdir` left off.

    Raises UsageError before any long work, Diverged when a loss or gradient is not
    finite, and Preempted, with the state saved, when `stop` is set.
    """
    logs.start(workdir.path)
    # What there is to do, and whether it can be done.
    mesh = meshes.make(fsdp=config.mesh.fsdp)
    meshes.check_batch(mesh, config.batch, config.accumulate)
    sets = data.make(config.data, batch=config.batch, seed=config.seed, mesh=mesh)
    clock = make_clock(config, sets.steps_per_epoch)
    network = models.make(config.model)
    example = sets.example(network.geometry)
    method = methods.make(config.method, network, clock=clock)
    check_fit(config, method, sets, mesh.size)
    schedule = schedules.make(config.schedule, batch=config.batch, clock=clock)

    # Shapes, then where they lie, then arrays.
    key = jax.random.key(config.seed)
    variables = jax.eval_shape(method.init, key, example)
    plan = make_plan(config, mesh, clock, sets, variables, example)
    optimizer = optim.make(config.optim, schedule, variables.params, clock=clock)
    init = make_init(method, optimizer, example)
    layout = meshes.lay_out(mesh, jax.eval_shape(init, key), config.mesh.rules)
    workdir.record(meshes.describe(mesh), variables.params)
    tools = {"sets": sets, "method": method, "network": network, "mesh": mesh}
    tools["workdir"] = workdir.path
    evaluators = evals.make(config.evals, clock=clock, check=stop.check, **tools)
    keep = ledger.keeper(workdir.path, config, clock.total_steps, meshes.hardware(mesh))
    step_fn = make_step(method, optimizer, schedule, sets.train.augment, config)
    step_fn = jit_step(step_fn, mesh, layout)

    with contextlib.ExitStack() as opened:
        saved = open_checkpoints(config.checkpoint, clock, workdir.path)
        opened.callback(saved.close)
        state, notes = begin(config, saved, init, layout, sets.size)
        step, done = int(state.step), notes["evaluated"]
        record = logs.Recorder(workdir.path, plan, notes, step, **config.log)
        record.watch(unreadable=sets.train.unreadable, last_good=saved.latest)
        opened.callback(record.close)
        batches = sets.train.batches(step, clock.total_steps)
        opened.callback(batches.close)
        opened.enter_context(jax.transfer_guard("disallow"))
        # Between two steps: evaluate, save, leave if asked to. Then the next step.
        while True:
            evals.run_due(evaluators, state, step, done, record, keep)
            if stop or saved.due(step):
                saved.save(step, state, record.notes(done))
            if stop or step == clock.total_steps:
                break
            with record.waiting():
                batch = next(batches)
            state, metrics = step_fn(state, batch, sets.train.resident)
            step, done = step + 1, []
            record.step(step, metrics)
    stop.check()
    workdir.finish(step)
    for line in logs.summary(workdir.path):
        log.info(line)
