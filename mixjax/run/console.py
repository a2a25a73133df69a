"""The log of a run: the lines on the console and in train.log."""

import logging
import sys
import warnings
from pathlib import Path

log = logging.getLogger("mixjax")
TIME = "%H:%M:%S"


def is_not_orbax(record: logging.LogRecord) -> bool:
    """A filter for absl's logger that drops the records of orbax.

    A module-level function, so that a logger that has it already ignores it.
    """
    return "/orbax/" not in record.pathname


def silence_orbax() -> None:
    """Suppresses, for the rest of the process, the noise of orbax's failed operations.

    Orbax raises its errors, which is enough. But after a failed read or write,
    tensorstore calls an event loop that is already closed and drops coroutines; Python
    would print both long after the one message that the user should read.
    """
    sys.unraisablehook = report_unraisable
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def report_unraisable(report) -> None:
    """A sys.unraisablehook that ignores calls of a closed event loop."""
    if str(report.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(report)


def log_path(workdir: Path, process: int) -> Path:
    """The log file of a process: train.log for process 0, train.1.log for process 1."""
    return workdir / (f"train.{process}.log" if process else "train.log")


def start(workdir: Path | None = None, process: int = 0) -> None:
    """Sends the log to the console and, if `workdir` is given, to its log file.

    process: process 0 prints everything on the console, the others only warnings; the
    files hold everything. Of the libraries' own records, only errors are shown, and of
    orbax none, since it also raises the errors that it logs.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").addFilter(is_not_orbax)
    # asyncio reports the unfinished tasks of orbax as errors.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    log.setLevel(logging.INFO)
    # A library's handler on the root logger would print each line again.
    log.propagate = False
    # A process may call this twice, without and with a workdir, or for several runs.
    for handler in log.handlers:
        handler.close()
    console = logging.StreamHandler(sys.stdout)
    log.handlers = [console]
    if workdir is not None:
        log.handlers.append(logging.FileHandler(log_path(workdir, process)))
    formatter = logging.Formatter("%(asctime)s %(message)s", TIME)
    for handler in log.handlers:
        handler.setFormatter(formatter)
    if process:
        console.setLevel(logging.WARNING)
        numbered = f"%(asctime)s process {process}: %(message)s"
        console.setFormatter(logging.Formatter(numbered, TIME))
