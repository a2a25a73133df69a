"""The results of the checks: facts to read, and problems to fix."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from mixjax.errors import UsageError


class Findings:
    """Facts and problems, in the order in which checks add them."""

    def __init__(self):
        self.facts: list[tuple[str, str]] = []
        self.problems: list[str] = []

    def fact(self, title: str, text: str) -> None:
        """Adds a line under `title`, unless it is already there."""
        if (title, text) not in self.facts:
            self.facts.append((title, text))

    def problem(self, text: str) -> None:
        """Adds a sentence, unless another check has added the same one."""
        if text not in self.problems:
            self.problems.append(text)

    def attempt(self, function: Callable, *args, **options):
        """Calls the function; if it raises, adds a problem and returns None.

        The warnings that it logs become facts.
        """
        try:
            with self._warnings():
                return function(*args, **options)
        except UsageError as error:
            self.problem(str(error))
        except Exception as error:  # unforeseen; a run would end in a traceback
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            self.problem(
                f"the run would end in an error: {type(error).__name__}: {reason}"
            )
        return None

    def holds(self, check: Callable, *args, **options) -> bool:
        """Whether the check passes, that is, raises nothing; else adds a problem."""
        # A tuple, since a check that passes may return None.
        return self.attempt(lambda: (check(*args, **options), True)) is not None

    @contextlib.contextmanager
    def _warnings(self) -> Iterator[None]:
        """Turns warnings logged meanwhile into facts, and keeps them off the screen."""
        log, handler = logging.getLogger("mixjax"), logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.fact("note", record.getMessage())
        before, log.propagate = log.propagate, False
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.propagate = before

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines, last = [], ""
        for title, text in self.facts:  # a title is printed once for all its lines
            lines.append(f"{title if title != last else '':<12}{text}")
            last = title
        if not self.problems:
            return [*lines, "", "no problem found"]
        count = len(self.problems)
        lines += ["", "1 problem:" if count == 1 else f"{count} problems:"]
        return lines + [f"{i:>3}. {text}" for i, text in enumerate(self.problems, 1)]
