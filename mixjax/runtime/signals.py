"""Signals set a flag that the training loop reads between steps."""

import os
import signal

from mixjax.errors import Preempted
from mixjax.runtime import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupt:
    """True after the first SIGTERM, SIGINT or SIGUSR1; a second SIGINT acts as usual.

    It is installed before anything slow, so that a signal during start-up or
    compilation is remembered until the state can be saved. Only the main thread may
    install it.

    With several processes, any of them may receive the signal. It then becomes true in
    all of them at the same query: jax counts the queries, which every process makes in
    the same order, and agrees on one that no process has made yet.
    """

    def __init__(self):
        self.name = ""
        self._asked = 0

    def install(self) -> "Interrupt":
        for number in SIGNALS:
            signal.signal(number, self._receive)
        return self

    def join(self) -> None:
        """Call this after the processes have joined, when jax handles SIGTERM."""
        if processes.together():
            came, self.name = self.name, ""
            if came:
                os.kill(os.getpid(), signal.SIGTERM)

    def _receive(self, number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if processes.together():
            # The signal that jax passes on to the other processes.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.name = signal.Signals(number).name

    def __bool__(self) -> bool:
        if processes.together() and not self.name:
            # Imported late: --help does not need jax.
            from jax.experimental import multihost_utils

            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.name = "SIGTERM"
        return bool(self.name)

    def check(self) -> None:
        """Raises Preempted after a signal; called during long work between steps."""
        if self:
            raise Preempted(self.name)
