"""The training loop, the only one in the project."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import jax

from mixjax import data, evals
from mixjax.run import console, ledger
from mixjax.run.checkpoints import Checkpoints
from mixjax.run.recorder import Recorder
from mixjax.run.summary import summary
from mixjax.run.watchdog import watching
from mixjax.run.workdir import Workdir
from mixjax.runtime.signals import Interrupt
from mixjax.sharding import meshes
from mixjax.training.build import assemble, make_plan
from mixjax.training.initial_state import begin
from mixjax.training.train_step import compile_step

log = logging.getLogger("mixjax")


def train(config, workdir: Workdir, stop: Interrupt) -> None:
    """Runs the recipe to its end, from wherever `workdir` left off.

    Raises UsageError before any long work if the recipe cannot run, Diverged when a
    loss or gradient is not finite, and Preempted, with the state saved, when `stop` is
    set.
    """
    # The stack closes in reverse order: data and files first, the watchdog last, so
    # that it still ends a process whose last checkpoint hangs.
    with contextlib.ExitStack() as stack:
        console.start(workdir.path, workdir.process)
        watch = stack.enter_context(watching(config.watchdog, workdir))
        # Mesh, data, network, method, optimizer: only shapes, all of them checked.
        mesh = make_mesh(config)
        sets = data.make(config.data, batch=config.batch, seed=config.seed, mesh=mesh)
        run = assemble(config, mesh, sets)
        plan, last_step = make_plan(config, run), run.clock.total_steps
        # Only now: a recipe that was refused above must not claim the folder.
        workdir.record(meshes.describe(mesh), run.variables.params)
        check = lambda: (watch.alive(), stop.check())
        evaluators = make_evaluators(config, run, workdir, check)
        keep_result = open_ledger(config, mesh, last_step, workdir)
        step_fn = compile_step(config, run)
        # The state, and the files that record its progress.
        saved = open_checkpoints(config.checkpoint, run.clock, workdir.path)
        stack.callback(saved.close)
        state, notes = begin(config, saved, run, sets.size, workdir)
        # The host counts the steps itself from here on: to read state.step would make
        # it wait for the devices.
        step, evaluated = int(state.step), notes["evaluated"]
        record = Recorder(workdir.path, plan, notes, step, **config.log)
        record.watch(unreadable=sets.train.unreadable, last_good=saved.newest)
        stack.callback(record.close)
        batches = sets.train.batches(step, last_step)
        stack.callback(batches.close)
        # An implicit transfer in the loop would stall it or hide a wrong sharding.
        stack.enter_context(jax.transfer_guard("disallow"))
        # Between two steps: evaluate, save, leave if asked to. In this order, as a
        # checkpoint notes which evaluations have been done.
        while True:
            evals.run_due(evaluators, state, step, evaluated, record, keep_result)
            if stop or saved.due(step):
                saved.save(step, state, record.notes(evaluated))
            if stop or step == last_step:
                break
            with watch.step(step + 1):
                with record.waiting():
                    batch = next(batches)
                # `state` is donated: its old arrays are gone after this call.
                state, metrics = step_fn(state, batch, sets.train.resident)
                step, evaluated = step + 1, []
                record.step(step, metrics)
    # After the stack has closed: all checkpoints are on disk by now.
    stop.check()
    workdir.finish(step)
    for line in summary(workdir.path):
        log.info(line)


def make_mesh(config):
    """The mesh of all devices; UsageError if a batch cannot be divided over it."""
    mesh = meshes.make(fsdp=config.mesh.fsdp)
    meshes.check_batch(mesh, config.batch, config.accumulate)
    meshes.check_batch(mesh, config.data.eval_batch, 1, "data.eval_batch")
    return mesh


def make_evaluators(config, run, workdir: Workdir, check: Callable) -> list:
    """Returns the evaluators of config.evals and logs when they will run.

    check: () -> None, called between the batches of an evaluation. It tells the
    watchdog that the run is alive, and raises Preempted if the run is to stop.
    """
    context = {
        "sets": run.sets,
        "mesh": run.mesh,
        "workdir": workdir.path,
        "method": run.method,
        "network": run.network,
        "recipe": config,
        "check": check,
    }
    evaluators = evals.make(config.evals, clock=run.clock, **context)
    log.info("evaluations: %s", evals.describe(evaluators, run.clock))
    return evaluators


def open_ledger(config, mesh, last_step: int, workdir: Workdir) -> Callable:
    """Returns the function (step, metrics) -> None that writes results to the ledger.

    All processes have the same results: only the first one writes them.
    """
    if workdir.process:
        return lambda step, metrics: None
    hardware = meshes.hardware(mesh)
    return ledger.make_result_writer(workdir.path, config, last_step, hardware)


def open_checkpoints(config, clock, folder: Path) -> Checkpoints:
    """Opens a run's checkpoints; converts the epochs of config.checkpoint to steps."""
    return Checkpoints(
        folder,
        every=clock.steps(config.every_epochs),
        last=clock.total_steps,
        keep=config.keep,
        keep_every=clock.steps(config.keep_every_epochs),
    )
