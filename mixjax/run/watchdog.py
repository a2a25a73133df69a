"""A run that no longer moves is ended, with the stacks of all its threads in its log.

Three things are watched. The work: a step may take some times the median of the steps
before it, all else (start, compilation, evaluation, saving) some fixed time. The other
processes: each writes heartbeats/<number>.json, the first reads all of them, the others
read the first's. The process itself: mixjax/run/watchdog_process.py, a process of its
own, notices when it is stopped or cannot run. All end with exit code 76, and the same
command continues from the newest checkpoint.
"""

import contextlib
import faulthandler
import json
import logging
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from mixjax.errors import HUNG
from mixjax.run import console
from mixjax.run.watchdog_process import GRACE, NAP
from mixjax.run.workdir import Workdir
from mixjax.runtime.atomic_write import write

log = logging.getLogger("mixjax")
FOLDER = "heartbeats"
STEPS = 100  # of the median
FEW = 3  # steps whose median says nothing yet


@contextlib.contextmanager
def watching(settings: Mapping, workdir: Workdir):
    """A Watch over this process' part of the run in `workdir`.

    settings: config.watchdog.
    """
    watch = Watch(**settings)
    number, stacks = workdir.process, console.log_path(workdir.path, workdir.process)
    watch.start(workdir.path, number, jax.process_count(), stacks)
    try:
        yield watch
    finally:
        watch.close()


class Watch:
    """Watches one process of a run, from `start` to `close`.

    step_factor: times the median of steps that a step may take, but at least
    step_seconds; other_seconds: what lies between two steps, or two signs of life in
    it; peer_seconds: how long a process may be silent. 0 switches each off.
    """

    def __init__(
        self,
        *,
        step_factor: float,
        step_seconds: float,
        other_seconds: float,
        peer_seconds: float,
    ):
        self._factor, self._least = step_factor, step_seconds
        self._other, self._silent = other_seconds, peer_seconds
        self._times: list[float] = []
        self._closed = threading.Event()
        self._mark("starting", other_seconds)

    # --- what the loop says ---------------------------------------------------------

    def _mark(self, doing: str, limit: float) -> None:
        """`doing` begins now and may take `limit` seconds; 0 for any time."""
        self._state = (time.monotonic(), doing, limit)

    def alive(self, doing: str = "evaluating or saving") -> None:
        """A sign of life between two steps."""
        self._mark(doing, self._other)

    @contextlib.contextmanager
    def step(self, number: int):
        """Around everything that a step is."""
        begin = time.monotonic()
        self._mark(f"step {number}", self.limit())
        yield
        self._times = [*self._times[1 - STEPS :], time.monotonic() - begin]
        self.alive()

    def limit(self) -> float:
        """Seconds that the next step may take; the first ones are compiled."""
        if len(self._times) < FEW:
            return self._other
        if not self._factor:
            return 0.0
        return max(self._least, self._factor * statistics.median(self._times))

    # --- what watches it --------------------------------------------------------------

    def start(self, workdir: Path, number: int, count: int, stacks: Path) -> None:
        """Begins to watch process `number` of `count`; `stacks`: the file for them."""
        self._number, self._folder, self._stacks = number, workdir / FOLDER, stacks
        self._folder.mkdir(exist_ok=True)
        others = range(1, count) if number == 0 else [0]
        now = time.monotonic()
        self._peers = {n: (self._read(n), now) for n in others} if count > 1 else {}
        self._guard = self._watch_itself() if self._silent else None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch; to be called before the process takes its leave."""
        self._closed.set()
        self._thread.join()
        if self._guard:
            self._guard.stdin.close()
            self._guard.wait()
            self._guard.stdout.close()
            faulthandler.unregister(signal.SIGUSR2)
            self._file.close()

    def _watch_itself(self) -> subprocess.Popen:
        self._file = open(self._stacks, "a")
        faulthandler.register(signal.SIGUSR2, self._file, all_threads=True)
        command = [
            sys.executable,
            "-m",
            "mixjax.run.watchdog_process",
            str(os.getpid()),
        ]
        return subprocess.Popen(
            [*command, str(self._silent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[2],
        )

    def _run(self) -> None:
        """The thread: looks once a NAP, and tells the guard that it could."""
        written, before = 0.0, time.monotonic()
        while not self._closed.wait(NAP):
            now = time.monotonic()
            if self._guard:
                self._hear_guard()
            began, doing, limit = self._state
            if now - before > GRACE:  # stopped with its guard, as by Ctrl-Z, and woken
                self._mark(doing, limit)
                began = now
            before = now
            if limit and now - began > limit:
                self._end(f"{doing}: nothing for {now - began:.0f} s, {limit:.0f} may")
            if self._silent and now - written > self._silent / 6:
                self._write(doing)
                self._look_at_peers(now)
                written = now

    def _hear_guard(self) -> None:
        if select.select([self._guard.stdout], [], [], 0)[0] and os.read(
            self._guard.stdout.fileno(), 1
        ):
            self._end(f"this process stood still for {self._silent:.0f} s")
        with contextlib.suppress(BrokenPipeError):  # someone killed the guard alone
            self._guard.stdin.write(b".")

    def _write(self, doing: str) -> None:
        beat = {"process": self._number, "doing": doing, "time": round(time.time(), 1)}
        beat |= {"host": socket.gethostname(), "pid": os.getpid()}
        write(self._folder / f"{self._number}.json", json.dumps(beat) + "\n")

    def _read(self, number: int) -> str:
        path = self._folder / f"{number}.json"
        return path.read_text() if path.exists() else ""

    def _look_at_peers(self, now: float) -> None:
        """Ends the run if a peer's heartbeat has not changed for too long.

        Times are our own: the clocks of two hosts need not agree.
        """
        for number, (last, since) in self._peers.items():
            beat = self._read(number)
            if beat != last:
                self._peers[number] = (beat, now)
            elif now - since > self._silent:
                self._end(
                    f"process {number} gave no sign of life for {now - since:.0f} s"
                )

    def _end(self, why: str) -> None:
        """Writes all stacks and ends the process at once."""
        log.error("ended by the watchdog: %s; the same command continues", why)
        with open(self._stacks, "a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        for handler in log.handlers:
            handler.flush()
        os._exit(HUNG)
