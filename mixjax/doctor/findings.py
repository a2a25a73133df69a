"""What the checks find: facts to read, and problems to mend."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from mixjax.errors import UsageError


class Findings:
    """Facts and problems in the order in which they were found."""

    def __init__(self):
        self.facts: list[tuple[str, str]] = []
        self.problems: list[str] = []

    def fact(self, title: str, text: str) -> None:
        """Adds a line, unless it is there already."""
        if (title, text) not in self.facts:
            self.facts.append((title, text))

    def problem(self, text: str) -> None:
        """Adds a sentence, unless another check has said the same."""
        if text not in self.problems:
            self.problems.append(text)

    def attempt(self, function: Callable, *args, **how):
        """function(*args, **how), or None and a problem if it raises.

        What it warns of is a fact.
        """
        try:
            with self._warnings():
                return function(*args, **how)
        except UsageError as error:
            self.problem(str(error))
        except Exception as error:  # a run would end in a traceback
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            self.problem(f"it would end in an error: {type(error).__name__}: {reason}")
        return None

    def holds(self, check: Callable, *args, **how) -> bool:
        """Whether check(*args, **how) raises nothing; a problem if it does."""
        return self.attempt(lambda: (check(*args, **how), True)) is not None

    @contextlib.contextmanager
    def _warnings(self) -> Iterator[None]:
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
        """All of it, to be printed."""
        found, last = [], ""
        for title, text in self.facts:
            found.append(f"{title if title != last else '':<12}{text}")
            last = title
        if not self.problems:
            return [*found, "", "no problem found"]
        count = len(self.problems)
        found += ["", "1 problem:" if count == 1 else f"{count} problems:"]
        return found + [f"{i:>3}. {text}" for i, text in enumerate(self.problems, 1)]
