"""Ends a run that has stopped making progress, after logging the stacks of its threads.

Three things are watched:

- The work. A step may take a multiple of the median of the steps before it; everything
  else (start, compilation, evaluation, saving) has a fixed limit.
- The other processes. Each writes heartbeats/<number>.json; process 0 reads those of
  all others, which read that of process 0.
- This process itself. A second process, mixjax/run/watchdog_process.py, notices when it
  is stopped or cannot run.

All of them end the run with exit code 76; the same command then continues from the
newest checkpoint.
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
MEDIAN_STEPS = 100  # steps that the median is taken over
MIN_STEPS = 3  # with fewer steps, of which the first are compiled, it is meaningless
# Heartbeats written within peer_seconds: a few may be late without an alarm.
BEATS_PER_LIMIT = 6


@contextlib.contextmanager
def watching(settings: Mapping, workdir: Workdir):
    """Yields a Watch over this process' part of the run in `workdir`.

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

    step_factor: the multiple of the median step's time that a step may take, but at
    least step_seconds. other_seconds: the limit for anything between two steps,
    counted from its last sign of life. peer_seconds: how long another process may be
    silent. 0 disables a check.
    """

    def __init__(
        self,
        *,
        step_factor: float,
        step_seconds: float,
        other_seconds: float,
        peer_seconds: float,
    ):
        self._step_factor, self._step_seconds = step_factor, step_seconds
        self._other_seconds, self._peer_seconds = other_seconds, peer_seconds
        self._durations: list[float] = []  # of the latest steps, in seconds
        self._closed = threading.Event()
        self._begin("starting", other_seconds)

    # --- called by the training loop ----------------------------------------------

    def _begin(self, activity: str, limit: float) -> None:
        """`activity` begins now and may take `limit` seconds; 0 means no limit."""
        # One assignment of a tuple is atomic: the thread never reads half of it.
        self._state = (time.monotonic(), activity, limit)

    def alive(self, activity: str = "evaluating or saving") -> None:
        """Gives a sign of life between two steps."""
        self._begin(activity, self._other_seconds)

    @contextlib.contextmanager
    def step(self, number: int):
        """Surrounds a step, from the wait for its data to the recording of metrics."""
        start = time.monotonic()
        self._begin(f"step {number}", self.limit())
        yield
        duration = time.monotonic() - start
        self._durations = [*self._durations[1 - MEDIAN_STEPS :], duration]
        self.alive()

    def limit(self) -> float:
        """The seconds that the next step may take; 0 means no limit."""
        if len(self._durations) < MIN_STEPS:
            return self._other_seconds
        if not self._step_factor:
            return 0.0
        median = statistics.median(self._durations)
        return max(self._step_seconds, self._step_factor * median)

    # --- start and end ------------------------------------------------------------

    def start(self, workdir: Path, number: int, count: int, stacks: Path) -> None:
        """Starts to watch process `number` of `count`.

        stacks: the file to which the stacks of a hanging process are appended.
        """
        self._number, self._folder, self._stacks = number, workdir / FOLDER, stacks
        self._folder.mkdir(exist_ok=True)
        peers = range(1, count) if number == 0 else [0]
        now = time.monotonic()
        # A file of an earlier start is no sign of life: only a change of it is.
        self._peers = (
            {peer: (self._read_beat(peer), now) for peer in peers} if count > 1 else {}
        )
        self._guard = self._start_guard() if self._peer_seconds else None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch; to be called before the process does anything unwatched."""
        self._closed.set()
        # First the thread, which writes to the guard's pipe, then the guard.
        self._thread.join()
        if self._guard:
            self._guard.stdin.close()
            self._guard.wait()
            self._guard.stdout.close()
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks_file.close()

    def _start_guard(self) -> subprocess.Popen:
        """Starts the process that watches this one."""
        # The handler is C code: it works while a thread holds the interpreter's lock.
        # The file must stay open, as the handler writes to its descriptor.
        self._stacks_file = open(self._stacks, "a")
        faulthandler.register(signal.SIGUSR2, self._stacks_file, all_threads=True)
        module = [sys.executable, "-m", "mixjax.run.watchdog_process"]
        return subprocess.Popen(
            [*module, str(os.getpid()), str(self._peer_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[2],  # where `-m` finds the package
        )

    # --- the watching thread ------------------------------------------------------

    def _run(self) -> None:
        """Checks everything once per NAP and shows the guard that it can."""
        written, previous = 0.0, time.monotonic()
        while not self._closed.wait(NAP):
            now = time.monotonic()
            if self._guard:
                self._exchange_with_guard()
            started, activity, limit = self._state
            if now - previous > GRACE:
                # Process and guard were both stopped, as by Ctrl-Z, and continued: the
                # time in between does not count.
                self._begin(activity, limit)
                started = now
            previous = now
            if limit and now - started > limit:
                seconds = now - started
                self._end(
                    f"{activity}: no progress for {seconds:.0f} s, limit {limit:.0f} s"
                )
            interval = self._peer_seconds / BEATS_PER_LIMIT
            if self._peer_seconds and now - written > interval:
                self._write_beat(activity)
                self._check_peers(now)
                written = now

    def _exchange_with_guard(self) -> None:
        """Ends the run if the guard asks for it, and gives the guard a sign of life."""
        stdout = self._guard.stdout
        # A closed pipe is readable too, but yields no byte.
        readable = select.select([stdout], [], [], 0)[0]
        if readable and os.read(stdout.fileno(), 1):
            self._end(f"this process was blocked for {self._peer_seconds:.0f} s")
        with contextlib.suppress(BrokenPipeError):  # the guard alone was killed
            self._guard.stdin.write(b".")

    def _write_beat(self, activity: str) -> None:
        beat = {
            "process": self._number,
            "doing": activity,
            "time": round(time.time(), 1),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        # Atomically: a peer never reads half a file.
        write(self._folder / f"{self._number}.json", json.dumps(beat) + "\n")

    def _read_beat(self, number: int) -> str:
        path = self._folder / f"{number}.json"
        return path.read_text() if path.exists() else ""

    def _check_peers(self, now: float) -> None:
        """Ends the run if a peer's heartbeat has not changed for too long."""
        for number, (last_beat, changed) in self._peers.items():
            beat = self._read_beat(number)
            if beat != last_beat:
                # Our time, not that in the file: two hosts' clocks need not agree.
                self._peers[number] = (beat, now)
            elif now - changed > self._peer_seconds:
                seconds = now - changed
                self._end(f"process {number} gave no sign of life for {seconds:.0f} s")

    def _end(self, reason: str) -> None:
        """Logs all stacks and ends the process at once."""
        log.error("ended by the watchdog: %s; the same command continues", reason)
        with open(self._stacks, "a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        # os._exit flushes nothing. A normal exit would join the threads that hang.
        for handler in log.handlers:
            handler.flush()
        os._exit(HUNG)
