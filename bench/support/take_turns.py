"""Contenders as processes that wait for their turn.

While one runs the others sleep; round after round, a busy machine slows all alike.
A script starts itself again with --worker=NAME for each contender; that process
prepares, then calls `serve`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from support import record


class NotStarted(Exception):
    """A contender ended before it was ready; the text is the end of its stderr."""


def serve(facts: dict, turn: Callable[[], dict]) -> None:
    """The worker's side: tells `facts`, then answers every line with `turn()`."""
    print("READY " + json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print("TURN " + json.dumps(turn()), flush=True)


def timed(run: Callable[[], None], steps: int) -> Callable[[], dict]:
    """A turn of `steps` runs; it tells the seconds of one."""

    def turn():
        begin = time.perf_counter()
        for _ in range(steps):
            run()
        return {"seconds": (time.perf_counter() - begin) / steps}

    return turn


def parser(text: str, contenders: str, batch: int) -> argparse.ArgumentParser:
    """The flags of a race. text: the script's; contenders: what --only has, unsaid."""
    found = argparse.ArgumentParser(description=text.split("\n")[0])
    found.add_argument("--batch", type=int, default=batch)
    found.add_argument("--rounds", type=int, default=7)
    found.add_argument("--steps", type=int, default=1, help="steps a turn")
    found.add_argument("--only", default=contenders, help="contenders")
    found.add_argument("--json", help="write the figures to this file")
    found.add_argument("--worker", help=argparse.SUPPRESS)
    return found


def start(name: str, **env: str) -> tuple[Callable[[], dict], Callable, dict]:
    """Starts worker `name` -> (take a turn, end it, its facts)."""
    process, errors = launch(name, env)
    facts = answer(process, "READY ")
    if facts is None:
        errors.seek(0)
        raise NotStarted(errors.read()[-800:])

    def turn():
        process.stdin.write("go\n")
        process.stdin.flush()
        found = answer(process, "TURN ")
        if found is None:
            errors.seek(0)
            raise RuntimeError(f"{name} ended early:\n{errors.read()[-800:]}")
        return found

    def end():
        process.stdin.close()
        process.stdout.close()
        process.wait()
        errors.close()

    return turn, end, facts


def race(names: list[str], rounds: int) -> tuple[dict, dict]:
    """({name: seconds of every round}, {name: facts}) of timed contenders."""
    takes, ends, facts = {}, [], {}
    for name in names:
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        takes[name], end, facts[name] = start(name, **env)
        ends.append(end)
    times = {name: [] for name in names}
    for _ in range(rounds):
        for name, take in takes.items():
            times[name].append(take()["seconds"])
    for end in ends:
        end()
    return times, facts


def launch(name: str, env: dict[str, str]) -> tuple[subprocess.Popen, object]:
    """This script's process for contender `name`, and the file of its stderr."""
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        [sys.executable, *sys.argv, f"--worker={name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONPATH": str(record.ROOT), **env},
    )
    return process, errors


def answer(process: subprocess.Popen, word: str) -> dict | None:
    """What follows `word` on the worker's next line with it; None at its end."""
    for line in process.stdout:
        if line.startswith(word):
            return json.loads(line[len(word) :])
    return None
