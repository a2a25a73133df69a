"""Compiles a run's step for chips that are not there, and says what would help."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from mixjax.chips.targets import Target
from mixjax.data.source import Source
from mixjax.doctor.findings import Findings
from mixjax.training import plan_report, plan_step
from mixjax.training.plan_step import StepPlan

EVERY = 10.0  # seconds between two signs of life


def check(findings: Findings, config, source: Source, target: Target) -> None:
    """Adds the plan of the step for `target`, and a problem if it does not fit.

    source: of the pictures, or a stand-in of the same size.
    """
    with progress(target.text) as say:
        say("the step")
        plan = findings.attempt(plan_step.plan_step, config, source, target)
        if plan is None:
            return
        for line in plan_report.describe_plan(plan):
            findings.fact(target.text, line)
        if plan.fits:
            report_largest(findings, config, source, plan, say)
        else:
            report_remedy(findings, config, source, plan, say)


def report_largest(
    findings: Findings, config, source: Source, plan: StepPlan, say: Callable
) -> None:
    """Adds the largest batch that fits."""
    arguments = config, source, plan, say
    largest = findings.attempt(plan_step.largest_batch, *arguments)
    if largest:
        findings.fact(
            plan.target.text,
            f"the largest batch that fits: {largest.batch}, with "
            f"{plan_report.describe_memory(largest)}",
        )


def report_remedy(
    findings: Findings, config, source: Source, plan: StepPlan, say: Callable
) -> None:
    """Adds the problem of a step that does not fit, with what would make it fit."""
    target, text = plan.target, plan.target.text
    if plan.memory is None:
        findings.problem(f"{text}: the step does not compile: {plan.refused}")
        return
    remedy = plan_step.find_remedy(config, source, target, say)
    advice = "no setting of remat, accumulate and fsdp that was tried makes it fit"
    if remedy:
        flags, changed = remedy
        advice = f"with {flags} it takes {plan_report.describe_memory(changed)}"
    smaller = plan_step.largest_batch(config, source, plan, say)
    if smaller.fits:
        advice += f"; or take a batch of {smaller.batch}"
    findings.problem(
        f"{text}: the step needs {plan_report.describe_memory(plan)} on each device; "
        f"{advice}."
    )


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that prints what is compiled; the seconds are then counted.

    To stderr, so that a report on stdout stays as it is.
    """
    begun, over = [time.monotonic()], threading.Event()

    def say(what: str) -> None:
        begun[0] = time.monotonic()
        print(f"compiling for {text}: {what}", file=sys.stderr, flush=True)

    def count() -> None:
        while not over.wait(EVERY):
            seconds = time.monotonic() - begun[0]
            print(f"  {seconds:.0f} s", file=sys.stderr, flush=True)

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield say
    finally:
        over.set()
        counter.join()
