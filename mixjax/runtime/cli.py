"""What all commands share: their flags, and how an error becomes an exit code."""

import errno
import sys
import traceback
from collections.abc import Callable

from mixjax import errors
from mixjax.runtime import processes


def flags(argv: list[str], known: tuple[str, ...]) -> tuple[dict, dict]:
    """({flag: value} of the flags `known`, {"config.a.b": text}) of a command line.

    UsageError with the nearest name for any other flag.
    """
    from mixjax.config import recipes  # imported late: --help does not need it

    values = dict(recipes.pairs(argv))
    changes = {k: v for k, v in values.items() if k.startswith("config.")}
    rest = {k: v for k, v in values.items() if k not in changes}
    for flag in rest:
        errors.check_name("flag", flag, known)
    return rest, changes


def need(flags: dict, flag: str, what: str) -> str:
    """The value of a flag; UsageError if it is missing, ending with `what` to do."""
    if flag not in flags:
        raise errors.UsageError(f"--{flag} is missing; {what}.")
    return flags[flag]


def code(work: Callable[[], int | None]) -> int:
    """Runs `work`; its exit code, or that of an error that a user is meant to read."""
    try:
        return work() or errors.DONE
    except errors.UsageError as error:
        return report(f"error: {error}", errors.USAGE)
    except errors.Diverged as error:
        return report(f"error: {error}", errors.DIVERGED)
    except errors.Preempted as error:
        return report(
            f"stopped by {error}; the same command continues", errors.PREEMPTED
        )
    except errors.Unsaved as error:
        text = f"error: {error}; once it can be, the same command continues from there"
        return report(text, errors.FAILED)
    except errors.LostPeer as error:
        return report(f"error: {error}; the same command continues", errors.HUNG)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        disk = error.filename or "the workdir"
        text = (
            f"error: no space is left on the disk of {disk}; once there is, the same "
        )
        return report(
            text + "command continues from its last checkpoint", errors.FAILED
        )


def report(text: str, code: int) -> int:
    """Prints a message for the user, with the number of the process; returns `code`."""
    print(processes.prefix() + text, file=sys.stderr)
    return code


def start(text: str, run: Callable[[list[str]], int]) -> None:
    """Ends the program with the exit code of run(flags), or prints the help `text`."""
    if any(a in ("-h", "-help", "--help", "--helpfull") for a in sys.argv[1:]):
        print(text)
        sys.exit(errors.DONE)
    try:
        code = run(sys.argv[1:])
    except Exception:
        if not processes.together():
            raise
        traceback.print_exc()
        code = errors.FAILED
    processes.leave(code)
