"""What the folder of a run holds, read so that a run may still be writing to it.

A half-written line or a broken file is skipped, and noted.
"""

import fcntl
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mixjax import errors
from mixjax.run import ledger

TEXTS = ("env.txt", "git.txt", "parameters.txt", "train.log")


class Found(NamedTuple):
    """What the folder of a run holds, as far as it can be read."""

    name: str
    config: dict
    curves: dict  # metric -> [(step, value), ...], finite values alone
    entries: list
    pictures: list  # paths, the newest first
    texts: dict  # "env.txt" -> its text, "" if there is none
    status: str
    notes: list  # what could not be read


def read_lines(path: Path, notes: list[str]) -> list[dict]:
    """The objects of a file with one a line; what is none is skipped with a note."""
    if not path.exists():
        return []
    lines, found = path.read_text(errors="replace").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if not isinstance(value.get("step"), int):
                raise ValueError
            found.append(value)
        except (ValueError, AttributeError):
            last = " (the last, half-written)" if number == len(lines) else ""
            notes.append(f"{path.name}: line {number} of {len(lines)} skipped{last}.")
    return found


def curves(lines: Sequence[Mapping]) -> dict:
    """{metric: [(step, value), ...]} in order of steps; a step's later value counts."""
    found: dict = {}
    for line in lines:
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and number and math.isfinite(value):
                found.setdefault(name, {})[line["step"]] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def entries(workdir: Path, notes: list[str]) -> list[dict]:
    """The entries of a run in order of protocol and step; broken ones are noted."""
    found = []
    for path in sorted(workdir.glob("eval/*/*.json")):
        try:
            entry = ledger.parse(path)
            ledger.check(entry, f"eval/{path.parent.name}/{path.name}")
            found.append(entry)
        except errors.UsageError as error:
            notes.append(str(error))
    return sorted(found, key=lambda e: (e["protocol"], e["step"]))


def is_running(workdir: Path) -> bool:
    """Whether a process holds the folder's lock."""
    lock = workdir / ".lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def status(workdir: Path) -> str:
    """complete, running or stopped."""
    if (workdir / "DONE").exists():
        return "complete"
    return "running" if is_running(workdir) else "stopped"


def gather(path: str) -> Found:
    """Reads the folder of a run. UsageError if it is none."""
    workdir = Path(path).expanduser().absolute()
    if not workdir.is_dir():
        raise errors.UsageError(f"--workdir={path} is not there.")
    notes: list[str] = []
    lines = read_lines(workdir / "metrics.jsonl", notes)
    known = workdir / "config.json"
    if not lines and not known.exists():
        raise errors.UsageError(
            f"--workdir={path} is not a run: no config.json and no metrics in it."
        )
    config = {}
    try:
        config = ledger.parse(known)
    except errors.UsageError as error:
        notes.append(str(error))
    lines += read_lines(workdir / "perf.jsonl", notes)
    return Found(
        name=workdir.name,
        config=config,
        curves=curves(lines),
        entries=entries(workdir, notes),
        pictures=newest(workdir / "figures"),
        texts={n: text(workdir / n) for n in TEXTS},
        status=status(workdir),
        notes=notes,
    )


def text(path: Path) -> str:
    """A text file, "" if there is none."""
    return path.read_text(errors="replace") if path.exists() else ""


def newest(folder: Path) -> list[Path]:
    """All PNG files below a folder, by the step in their names, the newest first."""

    def key(path):
        step = re.search(r"(\d+)\.png$", path.name)
        return (-int(step[1]) if step else 0, str(path))

    return sorted(folder.rglob("*.png"), key=key)
