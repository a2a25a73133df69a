"""A small process that notices when the run beside it is stopped or cannot run.

python -m mixjax.run.watchdog_process PID SECONDS: standard input is a pipe on which
process PID gives a sign of life every second. After SECONDS without one, the process
is continued, as it may have been stopped, and asked to end by a byte on standard
output. If it does not, it gets SIGUSR2, on which it writes its stacks, and is killed.
The watching process ends with the watched one.
"""

import os
import select
import signal
import sys
import time

GRACE = 10.0  # seconds that the process has to end itself
NAP = 1.0  # seconds between two checks


def watch(pid: int, seconds: float) -> None:
    """Returns when process `pid` has ended; kills it if it is silent for `seconds`."""
    last_sign = time.monotonic()
    while True:
        before = time.monotonic()
        ready, _, _ = select.select([0], [], [], NAP)
        now = time.monotonic()
        # A readable pipe without a byte is closed: the process has ended.
        if ready and not os.read(0, 4096):
            return
        # A nap that took far too long means that this process was stopped as well, so
        # the silence proves nothing.
        if ready or now - before > NAP + GRACE:
            last_sign = now
        elif now - last_sign > seconds:
            break
    # The byte first: the process finds it as soon as it runs again.
    os.write(1, b"x")
    os.kill(pid, signal.SIGCONT)
    if ends(GRACE):
        return
    os.kill(pid, signal.SIGUSR2)
    time.sleep(NAP)  # to write the stacks
    os.kill(pid, signal.SIGKILL)


def ends(seconds: float) -> bool:
    """Returns True if the process ends, which closes its pipe, within `seconds`."""
    deadline = time.monotonic() + seconds
    while (remaining := deadline - time.monotonic()) > 0:
        # Bytes may still come: signs of life from before the process was stopped.
        if select.select([0], [], [], remaining)[0] and not os.read(0, 4096):
            return True
    return False


if __name__ == "__main__":
    # A terminal or scheduler sends these to both processes. They are meant for the run,
    # whose end closes the pipe.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        watch(int(sys.argv[1]), float(sys.argv[2]))
    except (ProcessLookupError, BrokenPipeError):
        pass  # the process ended in the meantime
