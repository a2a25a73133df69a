"""The loop around the training step: the only one in the project."""

import contextlib
import logging
from pathlib import Path

import jax

from mixjax import data, evals
from mixjax.run import ledger, logs
from mixjax.run.checkpoints import Checkpoints
from mixjax.run.watchdog import watching
from mixjax.run.workdir import Workdir
from mixjax.runtime.signals import Interrupt
from mixjax.sharding import meshes
from mixjax.training.build import assemble, make_plan
from mixjax.training.initial_state import begin
from mixjax.training.train_step import jit_step, make_step

log = logging.getLogger("mixjax")


def open_checkpoints(config, clock, folder: Path) -> Checkpoints:
    """The checkpoints of a run, as config.checkpoint has them in epochs."""
    return Checkpoints(
        folder,
        every=clock.steps(config.every_epochs),
        last=clock.total_steps,
        keep=config.keep,
        keep_every=clock.steps(config.keep_every_epochs),
    )


def train(config, workdir: Workdir, stop: Interrupt) -> None:
    """Runs the recipe to its end, from wherever `workdir` left off.

    Raises UsageError before any long work, Diverged when a loss or gradient is not
    finite, and Preempted, with the state saved, when `stop` is set.
    """
    with contextlib.ExitStack() as opened:
        logs.start(workdir.path, workdir.process)
        watch = opened.enter_context(watching(config.watchdog, workdir))
        # What there is to do, and whether it can be done.
        mesh = meshes.make(fsdp=config.mesh.fsdp)
        meshes.check_batch(mesh, config.batch, config.accumulate)
        meshes.check_batch(mesh, config.data.eval_batch, 1, "data.eval_batch")
        sets = data.make(config.data, batch=config.batch, seed=config.seed, mesh=mesh)
        run = assemble(config, mesh, sets)
        plan, last = make_plan(config, run), run.clock.total_steps
        workdir.record(meshes.describe(mesh), run.variables.params)
        tools = {"sets": sets, "mesh": mesh, "workdir": workdir.path}
        tools |= {"method": run.method, "network": run.network, "recipe": config}
        tools |= {"check": lambda: (watch.alive(), stop.check())}
        evaluators = evals.make(config.evals, clock=run.clock, **tools)
        log.info("evaluations: %s", evals.describe(evaluators, run.clock))
        keep = ledger.keeper(workdir.path, config, last, meshes.hardware(mesh))
        keep = (lambda *_: None) if workdir.process else keep
        rules = run.method, run.optimizer, run.schedule, sets.train.augment
        step_fn = jit_step(make_step(*rules, config), mesh, run.layout)

        saved = open_checkpoints(config.checkpoint, run.clock, workdir.path)
        opened.callback(saved.close)
        state, notes = begin(config, saved, run, sets.size, workdir)
        step, done = int(state.step), notes["evaluated"]
        record = logs.Recorder(workdir.path, plan, notes, step, **config.log)
        record.watch(unreadable=sets.train.unreadable, last_good=saved.newest)
        opened.callback(record.close)
        batches = sets.train.batches(step, last)
        opened.callback(batches.close)
        opened.enter_context(jax.transfer_guard("disallow"))
        # Between two steps: evaluate, save, leave if asked to. Then the next step.
        while True:
            evals.run_due(evaluators, state, step, done, record, keep)
            if stop or saved.due(step):
                saved.save(step, state, record.notes(done))
            if stop or step == last:
                break
            with watch.step(step + 1):
                with record.waiting():
                    batch = next(batches)
                state, metrics = step_fn(state, batch, sets.train.resident)
                step, done = step + 1, []
                record.step(step, metrics)
    stop.check()
    workdir.finish(step)
    for line in logs.summary(workdir.path):
        log.info(line)
