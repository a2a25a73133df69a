"""The metrics of every step, fetched from the devices without blocking the loop."""

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
from mixjax.run.metrics_writer import NullWriter, Writer

log = logging.getLogger("mixjax")
# The number of steps that are dispatched before the host waits for the oldest one. The
# devices always have work queued; with more, batches would pile up in their memory.
IN_FLIGHT = 2
SLOW_DATA = 0.1  # fraction of the time spent waiting for data that deserves a hint
LISTED_TENSORS = 5  # tensors with gradients that are not finite, listed in a message


class Plan(NamedTuple):
    """The sizes of a run that its progress and speed are computed from."""

    total_steps: int
    batch: int
    examples: int  # in the training set
    steps_per_epoch: int
    tensor_names: list[str]  # the parameters, in the order of "grad_squares"
    step_flops: float | None  # floating-point operations of a step
    peak_flops: float | None  # operations that all devices could do in a second


class Recorder:
    """Collects the metrics of every step and writes their means and the speed.

    The metrics of a step are fetched once IN_FLIGHT later steps have been dispatched.
    This is also when a loss or gradient that is not finite ends the run. Means are
    written every `every` steps; speed is written and logged every `seconds`.
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
        """notes: those of the checkpoint at `step`, from which the run starts."""
        is_first, length = jax.process_index() == 0, notes["metrics_bytes"]
        self.writer = (
            Writer(workdir, length=length, step=step) if is_first else NullWriter()
        )
        self._plan = plan
        # [[step, {name: value}], ...] since the means were last written; a checkpoint
        # keeps them, so that a continued run writes the same means.
        self._window = notes["window"]
        self._newest = self._window[-1][1] if self._window else {}
        self._in_flight: deque = deque()  # (step, metrics on the devices)
        self.watch(unreadable=set(), last_good=lambda: None)
        self._every, self._seconds = every, seconds
        self._created = self._step_start = time.monotonic()
        self._compiling = True
        self._reset()

    def watch(self, *, unreadable: set[str], last_good: Callable) -> None:
        """Sets the sources of further facts that are logged.

        unreadable: the images that could not be read so far; the set may grow.
        last_good: () -> the step of the newest checkpoint, or None.
        """
        self._unreadable, self._last_good = unreadable, last_good

    def _reset(self) -> None:
        self._steps, self._busy, self._waited = 0, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self):
        """Measures the wait for a step's data, with which the step's time begins."""
        self._step_start = time.monotonic()
        yield
        self._waited += time.monotonic() - self._step_start

    def step(self, step: int, metrics: dict) -> None:
        """Takes the metrics (device arrays) of the step that was just dispatched.

        Raises Diverged if an earlier step's loss or gradient was not finite.
        """
        self._in_flight.append((step, metrics))
        if self._compiling:
            # The first step includes compilation, so it does not count for the speed.
            self.drain()
            log.info("first step done after %.1f s", time.monotonic() - self._created)
            self._compiling = False
            self._reset()
            return
        while len(self._in_flight) > IN_FLIGHT:
            self._fetch_oldest()
        self._steps += 1
        self._busy += time.monotonic() - self._step_start
        is_last = step == self._plan.total_steps
        if is_last:
            self.drain()
        # Measured in time spent on steps, not by the clock: the step after a long
        # evaluation has only been dispatched and would seem to take no time.
        if is_last or self._busy >= self._seconds:
            self._report_speed(step)

    def drain(self) -> None:
        """Waits for all dispatched steps; the wait counts as their time."""
        start = time.monotonic()
        while self._in_flight:
            self._fetch_oldest()
        self._busy += time.monotonic() - start

    def notes(self, evaluated: list[str]) -> dict:
        """Returns what a checkpoint must keep for the log to continue exactly.

        Waits for all dispatched steps. The lists are copies, as the checkpoint is
        written while the run goes on.
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

    def _fetch_oldest(self) -> None:
        step, metrics = self._in_flight.popleft()
        # The only transfer to the host: one for all metrics of the step.
        values = jax.device_get(metrics)
        squares = values.pop("grad_squares")
        if not (np.isfinite(values["loss"]) and np.isfinite(squares).all()):
            pairs = zip(self._plan.tensor_names, squares, strict=True)
            diverged = [name for name, square in pairs if not np.isfinite(square)]
            loss = float(values["loss"])
            raise Diverged(_explain_divergence(step, loss, diverged, self._last_good()))
        # In float64, as the tensors' squares differ by orders of magnitude.
        values["grad_norm"] = math.sqrt(squares.sum(dtype=np.float64))
        self._newest = {name: float(value) for name, value in values.items()}
        self._window.append([step, self._newest])
        if step % self._every == 0 or step in (1, self._plan.total_steps):
            self._write_means(step)

    def _write_means(self, step: int) -> None:
        means = {
            name: float(np.mean([values[name] for _, values in self._window]))
            for name in self._newest
        }
        # The mean of a schedule would be the rate of no step.
        means["lr"] = self._newest["lr"]
        means["examples_seen"] = step * self._plan.batch
        means["epoch"] = step / self._plan.steps_per_epoch
        self.writer.metrics(step, {f"train/{n}": v for n, v in means.items()})
        self._window = []

    def _report_speed(self, step: int) -> None:
        plan = self._plan
        seconds, wait = self._busy / self._steps, self._waited / self._busy
        rates = {
            "perf/step_ms": 1e3 * seconds,
            "perf/img_per_sec": plan.batch / seconds,
            "perf/img_per_sec_per_device": plan.batch / seconds / jax.device_count(),
            "perf/data_wait_frac": wait,
            "perf/eta_s": (plan.total_steps - step) * seconds,
        }
        if plan.step_flops and plan.peak_flops:
            # Model FLOPs utilisation: the fraction of the devices' peak in use.
            rates["perf/mfu"] = plan.step_flops / seconds / plan.peak_flops
        if self._unreadable:
            rates["data/unreadable"] = len(self._unreadable)
        self.writer.perf(step, rates)
        parts = [
            f"step {step}/{plan.total_steps}",
            f"epoch {step / plan.steps_per_epoch:.2f}",
            f"loss {self._newest['loss']:.4f}",
            f"lr {self._newest['lr']:.3g}",
            f"{rates['perf/img_per_sec']:.4g} img/s",
            f"data wait {wait:.0%}",
            f"mfu {rates['perf/mfu']:.1%}" if "perf/mfu" in rates else "",
            f"{len(self._unreadable)} unreadable" if self._unreadable else "",
            f"eta {clock(rates['perf/eta_s'])}",
        ]
        log.info("%s", "  ".join(filter(None, parts)))
        if wait > SLOW_DATA:
            log.info(
                "  the devices wait for data: try more data.threads, antialias=False "
                "in decode_crop, or data.on_device=True for a small data set"
            )
        self._reset()


def _explain_divergence(
    step: int, loss: float, diverged: list[str], last_good: int | None
) -> str:
    """A sentence on a step whose loss or gradients are not finite.

    diverged: names of the tensors with such gradients. last_good: the step of the
    newest checkpoint, or None.
    """
    listed = ", ".join(diverged[:LISTED_TENSORS])
    if len(diverged) > LISTED_TENSORS:
        listed += f" and {len(diverged) - LISTED_TENSORS} more"
    gradients = "all gradients are finite"
    if diverged:
        gradients = f"the gradients of {listed} are not finite"
    checkpoint = "no checkpoint has been written yet"
    if last_good is not None:
        checkpoint = f"the checkpoint of step {last_good}, the last good one, is kept"
    return f"step {step}: loss {loss}; {gradients}; {checkpoint}."


def clock(seconds: float) -> str:
    """Formats a duration in seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
