"""The metrics of every step, taken from the devices without holding up the loop."""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mixjax.errors import Diverged
from mixjax.run.metrics_writer import Quiet, Writer

log = logging.getLogger("mixjax")
IN_FLIGHT = 2  # steps that may run ahead of the host; more would pile up batches


class Plan(NamedTuple):
    """What the numbers of a run are measured by."""

    total_steps: int
    batch: int
    examples: int  # in the training set
    steps_per_epoch: int
    tensors: list[str]  # the names that belong to "grad_squares"
    work: float | None  # matrix operations of a step
    peak: float | None  # what all devices could do in a second


class Recorder:
    """Takes the metrics of every step and passes them on, without holding it up.

    A step's numbers are fetched when IN_FLIGHT later steps have been started; that is
    also when a loss or gradient that is not finite ends the run. Their means are
    written every `every` steps; speed is written and printed every `seconds`.
    """

    def __init__(
        self,
        workdir: Path,
        plan: Plan,
        notes: dict,
        step: int,
        *,
        every: int,
        seconds: float,
    ):
        """notes: of the checkpoint that the run starts from, at `step`."""
        first, length = jax.process_index() == 0, notes["metrics_bytes"]
        self.writer = Writer(workdir, length=length, step=step) if first else Quiet()
        self._plan = plan
        self._window = notes["window"]  # [[step, {name: value}], ...] not yet written
        self._newest = self._window[-1][1] if self._window else {}
        self._flying: deque = deque()  # (step, metrics on the devices)
        self.watch(unreadable=set(), last_good=lambda: None)
        self._every, self._seconds = every, seconds
        self._begun = self._start = time.monotonic()
        self._first = True
        self._reset()

    def watch(self, *, unreadable: set[str], last_good: Callable) -> None:
        """What else to tell: the pictures found broken so far (the set may grow), and
        the step of the newest checkpoint, () -> step or None."""
        self._unreadable, self._last_good = unreadable, last_good

    def _reset(self) -> None:
        self._steps, self._busy, self._waited = 0, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a step's data; the step counts from here."""
        self._start = time.monotonic()
        yield
        self._waited += time.monotonic() - self._start

    def step(self, step: int, metrics: dict) -> None:
        """Takes the metrics (device arrays) of the step that was just started."""
        self._flying.append((step, metrics))
        if self._first:  # it was compiled: not a time to count
            self.drain()
            log.info("first step done after %.1f s", time.monotonic() - self._begun)
            self._first = False
            self._reset()
            return
        while len(self._flying) > IN_FLIGHT:
            self._land()
        self._steps += 1
        self._busy += time.monotonic() - self._start
        last = step == self._plan.total_steps
        if last:
            self.drain()
        # By the time of steps, not by the clock: after a long evaluation a step has
        # only been started, and would seem to take no time.
        if last or self._busy >= self._seconds:
            self._print(step)

    def drain(self) -> None:
        """Waits for every step that was started; the wait is part of their time."""
        begin = time.monotonic()
        while self._flying:
            self._land()
        self._busy += time.monotonic() - begin

    def notes(self, evaluated: list[str]) -> dict:
        """What a checkpoint must keep so that the log continues exactly.

        Copies: the checkpoint is written while the run goes on.
        """
        self.drain()
        return {
            "window": list(self._window),
            "metrics_bytes": self.writer.length(),
            "evaluated": list(evaluated),
            "examples": self._plan.examples,
        }

    def close(self) -> None:
        """Closes the files."""
        self.writer.close()

    def _land(self) -> None:
        step, metrics = self._flying.popleft()
        values = jax.device_get(metrics)
        squares = values.pop("grad_squares")
        if not (np.isfinite(values["loss"]) and np.isfinite(squares).all()):
            pairs = zip(self._plan.tensors, squares, strict=True)
            bad = [name for name, square in pairs if not np.isfinite(square)]
            loss = float(values["loss"])
            raise Diverged(_sentence(step, loss, bad, self._last_good()))
        values["grad_norm"] = math.sqrt(squares.sum(dtype=np.float64))
        self._newest = {name: float(value) for name, value in values.items()}
        self._window.append([step, self._newest])
        if step % self._every == 0 or step in (1, self._plan.total_steps):
            self._write(step)

    def _write(self, step: int) -> None:
        names = self._newest
        means = {n: float(np.mean([v[n] for _, v in self._window])) for n in names}
        means["lr"] = self._newest["lr"]
        means["examples_seen"] = step * self._plan.batch
        means["epoch"] = step / self._plan.steps_per_epoch
        self.writer.metrics(step, {f"train/{n}": v for n, v in means.items()})
        self._window = []

    def _print(self, step: int) -> None:
        seconds, wait = self._busy / self._steps, self._waited / self._busy
        rates = {
            "perf/step_ms": 1e3 * seconds,
            "perf/img_per_sec": self._plan.batch / seconds,
            "perf/img_per_sec_per_device": self._plan.batch
            / seconds
            / jax.device_count(),
            "perf/data_wait_frac": wait,
            "perf/eta_s": (self._plan.total_steps - step) * seconds,
        }
        if self._plan.work and self._plan.peak:
            rates["perf/mfu"] = self._plan.work / seconds / self._plan.peak
        if self._unreadable:
            rates["data/unreadable"] = len(self._unreadable)
        self.writer.perf(step, rates)
        parts = [
            f"step {step}/{self._plan.total_steps}",
            f"epoch {step / self._plan.steps_per_epoch:.2f}",
            f"loss {self._newest['loss']:.4f}",
            f"lr {self._newest['lr']:.3g}",
            f"{rates['perf/img_per_sec']:.4g} img/s",
            f"data wait {wait:.0%}",
            f"mfu {rates['perf/mfu']:.1%}" if "perf/mfu" in rates else "",
            f"{len(self._unreadable)} unreadable" if self._unreadable else "",
            f"eta {clock(rates['perf/eta_s'])}",
        ]
        log.info("%s", "  ".join(filter(None, parts)))
        if wait > 0.1:
            log.info(
                "  the devices wait for data: try more data.threads, antialias=False "
                "in decode_crop, or data.on_device=True for a small set"
            )
        self._reset()


def _sentence(step: int, loss: float, bad: list[str], good: int | None) -> str:
    some = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    which = f"not finite are the gradients of {some}" if bad else "gradients are finite"
    kept = "no checkpoint was written before"
    if good is not None:
        kept = f"the checkpoint of step {good} is the last good one, and kept"
    return f"step {step}: loss {loss}; {which}; {kept}."


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
