"""Evaluations while training: each section of config.evals is one evaluator.

`name` is a file of this folder whose make(...) returns run(state, step, writer) ->
{metric: value}, or None if the data cannot be evaluated so. If the file says LEDGER,
what it finds is written to the ledger, too.
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mixjax.config.registry import call, load, take
from mixjax.errors import Preempted
from mixjax.state import Clock

log = logging.getLogger("mixjax")


class Evaluator(NamedTuple):
    """Something to run on the state now and then."""

    name: str
    every: int  # steps from one time to the next, 0: only at the end
    due: Callable  # step -> bool
    run: Callable  # (state, step, writer) -> {metric: value}
    kept: bool  # what it finds is a result, for the ledger


def make(config: Mapping, *, clock: Clock, **context) -> list[Evaluator]:
    """The evaluators of config.evals.

    every_epochs: how often, in epochs, 0 for only at the end, which is always due;
    at_start: also on the untrained network. context: what an evaluator may use (sets,
    method, network, mesh, workdir, check, and recipe, the whole configuration).
    """
    found = []
    for name, section in config.items():
        fields = dict(section)
        kind, every, at_start = take(
            f"evals.{name}", fields, "name", "every_epochs", "at_start"
        )
        file = load(__name__, kind, f"evals.{name}.name")
        run = call(f"evals.{name}", file.make, fields, **context)
        if run is None:
            continue
        steps = clock.steps(every)
        due = _schedule(steps, at_start, clock)
        kept = getattr(file, "LEDGER", False)
        found.append(Evaluator(name, steps, due, run, kept))
    return found


def describe(evaluators: list[Evaluator], clock: Clock) -> str:
    """How often each is due: a squeezed run may evaluate more than it learns."""

    def often(every: int) -> str:
        if not 0 < every < clock.total_steps:
            return "at the end"
        return "every step" if every == 1 else f"every {every} steps"

    return ", ".join(f"{e.name} {often(e.every)}" for e in evaluators) or "none"


def _schedule(every: int, at_start: bool, clock: Clock) -> Callable:
    def due(step: int) -> bool:
        if step == 0:
            return at_start
        return (every > 0 and step % every == 0) or step == clock.total_steps

    return due


def run_due(
    evaluators, state, step: int, done: list[str], record, keep: Callable
) -> None:
    """Runs what is due after `step` and not in `done`, adding each name to `done`.

    keep: (step, metrics) writes what is a result to the ledger. Returns early, with
    `done` saying how far it came, when a signal asks to stop.
    """
    due = [e for e in evaluators if e.due(step) and e.name not in done]
    if due:
        record.drain()
    for evaluator in due:
        try:
            values = evaluator.run(state, step, record.writer)
        except Preempted:
            return
        if values:
            record.writer.metrics(step, values)
            if evaluator.kept:
                keep(step, values)
            shown = "  ".join(f"{k} {v:.6g}" for k, v in values.items())
            log.info("step %d  %s", step, shown)
        done.append(evaluator.name)
