"""The log of a run: what its user reads on the console and in train.log."""

import logging
import sys
import warnings
from pathlib import Path

log = logging.getLogger("mixjax")


def not_of_orbax(record: logging.LogRecord) -> bool:
    """A filter for absl's logger; adding it twice is adding it once."""
    return "/orbax/" not in record.pathname


def hush() -> None:
    """For the rest of this process: not a word of what orbax leaves behind.

    When it cannot read or write, which it raises, tensorstore goes on calling an event
    loop that is closed, and coroutines are dropped.
    """
    sys.unraisablehook = unraisable
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def unraisable(report) -> None:
    """Says all but that the event loop is closed."""
    if str(report.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(report)


def path(workdir: Path, process: int) -> Path:
    """The log of a process: train.log of the first, train.1.log of the next, ..."""
    return workdir / (f"train.{process}.log" if process else "train.log")


def start(workdir: Path | None = None, process: int = 0) -> None:
    """Sends the log to the console and, once there is one, to the file in workdir.

    process: of several, only the first says all on the console, the others just
    warnings. The libraries' own chatter stays out unless it is an error, and orbax'
    too when it is: it raises what it prints.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").addFilter(not_of_orbax)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # orbax' tasks
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in log.handlers:
        handler.close()
    console = logging.StreamHandler(sys.stdout)
    log.handlers = [console]
    if workdir is not None:
        log.handlers.append(logging.FileHandler(path(workdir, process)))
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    for handler in log.handlers:
        handler.setFormatter(form)
    if process:
        console.setLevel(logging.WARNING)
        text = f"%(asctime)s process {process}: %(message)s"
        console.setFormatter(logging.Formatter(text, "%H:%M:%S"))
