"""What all commands share: their flags, and how an error becomes an exit code."""

import sys
from collections.abc import Callable

from mixjax import errors


def flags(argv: list[str], known: tuple[str, ...]) -> tuple[dict, dict]:
    """(values of the flags `known`, changes "config.a.b": text) of a command line.

    UsageError with the nearest name for any other flag.
    """
    from mixjax import recipes  # late: --help need not wait for it

    given = dict(recipes.pairs(argv))
    changes = {k: v for k, v in given.items() if k.startswith("config.")}
    rest = {k: v for k, v in given.items() if k not in changes}
    for flag in rest:
        errors.check_name("flag", flag, known)
    return rest, changes


def need(given: dict, flag: str, what: str) -> str:
    """The value of a flag; UsageError if it was not given."""
    if flag not in given:
        raise errors.UsageError(f"--{flag} is missing; {what}.")
    return given[flag]


def code(work: Callable[[], int | None]) -> int:
    """Runs `work`; its exit code, or that of the error a user is meant to read."""
    try:
        return work() or errors.DONE
    except errors.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.USAGE
    except errors.Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.DIVERGED
    except errors.Preempted as error:
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
        return errors.PREEMPTED


def start(text: str, run: Callable[[list[str]], int]) -> None:
    """Ends the program with run(flags)'s exit code, or prints `text` if asked to."""
    if any(a in ("-h", "-help", "--help", "--helpfull") for a in sys.argv[1:]):
        print(text)
        sys.exit(errors.DONE)
    sys.exit(run(sys.argv[1:]))
