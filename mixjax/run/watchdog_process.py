"""A small process beside a run that notices when the run itself stands still.

python -m mixjax.run.watchdog_process PID SECONDS: its standard input is a pipe on which
process PID gives a sign of life every second. When none has come for SECONDS, the
process is woken (it may have been stopped) and told to end itself, by a byte on
standard output; if it cannot, it is made to write its stacks (SIGUSR2) and killed. Ends
with the process.
"""

import os
import select
import signal
import sys
import time

GRACE = 10.0  # seconds for the process to end itself
NAP = 1.0  # seconds between two looks


def watch(pid: int, seconds: float) -> None:
    """Returns when the process has ended; kills it if it stands still."""
    last = time.monotonic()
    while True:
        before = time.monotonic()
        ready, _, _ = select.select([0], [], [], NAP)
        now = time.monotonic()
        if ready and not os.read(0, 4096):
            return
        if ready or now - before > NAP + GRACE:  # or we were stopped ourselves
            last = now
        elif now - last > seconds:
            break
    os.write(1, b"x")
    os.kill(pid, signal.SIGCONT)
    if ends(GRACE):
        return
    os.kill(pid, signal.SIGUSR2)
    time.sleep(NAP)
    os.kill(pid, signal.SIGKILL)


def ends(seconds: float) -> bool:
    """Whether the process ends within `seconds`: then its pipe is closed."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([0], [], [], left)[0] and not os.read(0, 4096):
            return True
    return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which tells us
    try:
        watch(int(sys.argv[1]), float(sys.argv[2]))
    except (ProcessLookupError, BrokenPipeError):
        pass  # it ended meanwhile
