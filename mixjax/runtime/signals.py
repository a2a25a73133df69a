"""Signals become a flag that the loop reads between steps."""

import os
import signal

from mixjax.errors import Preempted
from mixjax.runtime import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupt:
    """Set by the first SIGTERM, SIGINT or SIGUSR1; a second SIGINT acts as usual.

    Installed before anything slow, so that a signal during start-up or compilation is
    kept until the state can be saved. Only the main thread may install it.

    Of several processes any may get the signal. Then it is true in all of them from
    the same question on: jax counts the questions, which every process asks in the same
    order, and agrees on one that none has asked yet.
    """

    def __init__(self):
        self.name = ""
        self._asked = 0

    def install(self) -> "Interrupt":
        for number in SIGNALS:
            signal.signal(number, self._receive)
        return self

    def join(self) -> None:
        """To be called once the processes have joined: jax now listens to SIGTERM."""
        if processes.together():
            came, self.name = self.name, ""
            if came:
                os.kill(os.getpid(), signal.SIGTERM)

    def _receive(self, number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if processes.together():
            os.kill(os.getpid(), signal.SIGTERM)  # the one that jax tells the others
        else:
            self.name = signal.Signals(number).name

    def __bool__(self) -> bool:
        if processes.together() and not self.name:
            from jax.experimental import multihost_utils  # late: --help has no jax

            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.name = "SIGTERM"
        return bool(self.name)

    def check(self) -> None:
        """Raises Preempted if a signal has come; for long work between steps."""
        if self:
            raise Preempted(self.name)
