"""Reads the folder of a run, which may still be writing to it.

Half-written lines and broken files are skipped and noted.
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


class RunFiles(NamedTuple):
    """The contents of a run's folder, as far as they can be read."""

    name: str
    config: dict
    curves: dict  # metric -> [(step, value), ...], only finite values
    entries: list  # of the ledger, by protocol and step
    pictures: list  # paths, the newest first
    texts: dict  # {"env.txt": its text, "" if absent}
    status: str  # see status()
    notes: list  # what could not be read


def read_lines(path: Path, notes: list[str]) -> list[dict]:
    """The objects of a JSON Lines file; lines that are none are skipped and noted."""
    if not path.exists():
        return []
    lines, objects = path.read_text(errors="replace").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if not isinstance(value.get("step"), int):
                raise ValueError
            objects.append(value)
        except (ValueError, AttributeError):
            last = " (the last, half-written)" if number == len(lines) else ""
            notes.append(f"{path.name}: line {number} of {len(lines)} skipped{last}.")
    return objects


def curves(lines: Sequence[Mapping]) -> dict:
    """{metric: [(step, value), ...]}, sorted by step.

    A resumed run repeats steps: the later line of a step counts.
    """
    by_step: dict = {}
    for line in lines:
        for name, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number and math.isfinite(value):
                by_step.setdefault(name, {})[line["step"]] = value
    return {name: sorted(points.items()) for name, points in by_step.items()}


def entries(workdir: Path, notes: list[str]) -> list[dict]:
    """The entries of a run, sorted by protocol and step; broken ones are noted."""
    valid = []
    for path in sorted(workdir.glob("eval/*/*.json")):
        try:
            entry = ledger.parse(path)
            ledger.check(entry, f"eval/{path.parent.name}/{path.name}")
            valid.append(entry)
        except errors.UsageError as error:
            notes.append(str(error))
    return sorted(valid, key=lambda e: (e["protocol"], e["step"]))


def is_running(workdir: Path) -> bool:
    """Whether a process holds the lock of the folder."""
    lock = workdir / ".lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            # Shared and at once: it fails only while a run holds its exclusive lock.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def status(workdir: Path) -> str:
    """ "complete", "running" or "stopped"."""
    if (workdir / "DONE").exists():
        return "complete"
    return "running" if is_running(workdir) else "stopped"


def gather(path: str) -> RunFiles:
    """Reads the folder of a run. UsageError if it is not one."""
    workdir = Path(path).expanduser().absolute()
    if not workdir.is_dir():
        raise errors.UsageError(f"--workdir={path} does not exist.")
    notes: list[str] = []
    lines = read_lines(workdir / "metrics.jsonl", notes)
    config_file = workdir / "config.json"
    if not lines and not config_file.exists():
        raise errors.UsageError(
            f"--workdir={path} is not a run: no config.json and no metrics in it."
        )
    config = {}
    try:
        config = ledger.parse(config_file)
    except errors.UsageError as error:
        notes.append(str(error))
    lines += read_lines(workdir / "perf.jsonl", notes)
    return RunFiles(
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
    """The text of a file, "" if it does not exist."""
    return path.read_text(errors="replace") if path.exists() else ""


def newest(folder: Path) -> list[Path]:
    """All PNG files below a folder, those of the highest step in their names first."""

    def key(path):
        step = re.search(r"(\d+)\.png$", path.name)
        return (-int(step[1]) if step else 0, str(path))

    return sorted(folder.rglob("*.png"), key=key)
