"""Signals become a flag that the loop reads between steps."""

import signal

from mixjax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupt:
    """Set by the first SIGTERM, SIGINT or SIGUSR1; a second SIGINT acts as usual.

    Installed before anything slow, so that a signal during start-up or compilation is
    kept until the state can be saved. Only the main thread may install it.
    """

    def __init__(self):
        self.name = ""

    def install(self) -> "Interrupt":
        for number in SIGNALS:
            signal.signal(number, self._receive)
        return self

    def _receive(self, number, frame):
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __bool__(self) -> bool:
        return bool(self.name)

    def check(self) -> None:
        """Raises Preempted if a signal has come; for long work between steps."""
        if self:
            raise Preempted(self.name)
