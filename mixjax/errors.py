"""Exit codes, and the errors that a user is meant to read."""

import difflib
import re
from collections.abc import Iterable

DONE = 0  # the run is complete
FAILED = 1  # an unexpected error
USAGE = 2  # a bad configuration, path or flag, found before any long work
DIVERGED = 3  # a loss or gradient that is not finite
PREEMPTED = 75  # stopped by a signal, state saved: start the same command again
HUNG = 76  # stuck, or another process was lost: the same command repeats some steps


class UsageError(ValueError):
    """A mistake that the user can correct; its text is the one sentence to print."""


class Diverged(RuntimeError):
    """The loss or a gradient is no longer finite."""


class Preempted(RuntimeError):
    """A signal asked this process to stop."""


class Unsaved(RuntimeError):
    """The state could not be written, as when a disk is full."""


class LostPeer(RuntimeError):
    """Another process of this run has ended or does not answer."""


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """The end of a message about an unknown name: the nearest known names, or some."""
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), known, n=most, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not known:
        return "there are none here."
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return "known: " + ", ".join(known[:12]) + more + "."


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises UsageError unless `name` is one of `known`; `what` names the field."""
    known = list(known)
    if name not in known:
        raise UsageError(f"{what} {name!r} does not exist; {nearest(name, known)}")


def check_regex(what: str, text: str) -> None:
    """Raises UsageError unless `text` is a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(
            f"{what}: {text!r} is not a regular expression: {error}"
        ) from error
