"""Evaluations during training: each section of config.evals is one evaluator.

`name` is a file of this folder with a function make(...), which returns
run(state, step, writer) -> {metric: value}, or None if the data does not allow this
evaluation. Files without `make` are helpers. The metrics of a file that sets
LEDGER = True are results and are also written to the ledger.
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mixjax.config.registry import call, load, take
from mixjax.errors import Preempted
from mixjax.state import Clock

log = logging.getLogger("mixjax")


class Evaluator(NamedTuple):
    """A measurement of the state that is repeated during training."""

    name: str
    every: int  # steps between evaluations; 0: only at the end
    due: Callable  # step -> bool, whether to evaluate after it
    run: Callable  # (state, step, writer) -> {metric: value}
    kept: bool  # whether its metrics are results, for the ledger


def make(config: Mapping, *, clock: Clock, **context) -> list[Evaluator]:
    """The evaluators of config.evals.

    every_epochs: epochs between evaluations; 0: only at the end, which is always due.
    at_start: whether to evaluate the untrained network, too. context: what an evaluator
    may ask for by name (sets, method, network, mesh, workdir, check, and recipe, the
    whole configuration).
    """
    evaluators = []
    for name, section in config.items():
        fields = dict(section)
        kind, every, at_start = take(
            f"evals.{name}", fields, "name", "every_epochs", "at_start"
        )
        file = load(__name__, kind, f"evals.{name}.name")
        run = call(f"evals.{name}", file.make, fields, **context)
        if run is None:  # not for this data
            continue
        steps = clock.steps(every)
        due = _schedule(steps, at_start, clock)
        kept = getattr(file, "LEDGER", False)
        evaluators.append(Evaluator(name, steps, due, run, kept))
    return evaluators


def describe(evaluators: list[Evaluator], clock: Clock) -> str:
    """How often each is due, for the log.

    A shortened run may well spend more time evaluating than training.
    """

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
    """Runs the evaluators due after `step` whose names are not in `done`.

    Adds each name to `done` as it finishes. keep: (step, metrics), writes results to
    the ledger. When a signal asks to stop, returns early; `done` then names those that
    a resumed run can skip.
    """
    due = [e for e in evaluators if e.due(step) and e.name not in done]
    if due:
        record.drain()  # pending training metrics come first
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
