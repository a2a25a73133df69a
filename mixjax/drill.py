"""python -m mixjax.drill [--signals=5] [--workdir=DIR] [--config=FILE] [--config.x=y]

Does on this machine what a scheduler does: stops and kills a small run at random
moments, restarts it each time, and compares the result with an undisturbed run. Prints
how many steps were lost, and whether all weights, the optimizer state and metrics.jsonl
are equal bit for bit.

  --signals=N   how often a run is stopped (SIGTERM), and how often killed (SIGKILL)
  --seed=S      seed for the moments
  --workdir=DIR the folder of the three runs; default: runs/drill
  --config=...  a recipe and its fields, as for mixjax.main; default: the quickstart
                in 60 steps

Exit codes: 0 all is equal and no SIGTERM cost a step, 1 otherwise, 2 bad flags.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mixjax import errors
from mixjax.runtime import cli

ROOT = Path(__file__).parents[1]
SMALL = {  # fields that make the quickstart take half a minute
    "steps": 60,
    "batch": 64,
    "model.encoder.width": 32,
    "model.encoder.depth": 2,
    "model.encoder.heads": 2,
    "model.decoder.width": 32,
    "model.decoder.depth": 1,
    "model.decoder.heads": 2,
    "evals.knn.every_epochs": 20.0,
    "checkpoint.every_epochs": 10.0,
}
LISTENS = 0.5  # seconds after its start until a process handles signals


class Blow(NamedTuple):
    """One signal and its effect."""

    seconds: float  # after the start
    code: int  # how the run ended
    done: int  # steps in metrics.jsonl
    saved: int  # steps in the newest checkpoint


def last_step(workdir: Path) -> int:
    """The newest step in metrics.jsonl, or 0."""
    file = workdir / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    last_step = 0
    for line in lines:
        try:
            last_step = max(last_step, json.loads(line)["step"])
        except ValueError:
            continue  # half a line, left by a killed run
    return last_step


def saved_step(workdir: Path) -> int:
    """The step of the newest complete checkpoint, or 0.

    A folder whose name is not a number is a checkpoint being written: it is marked as
    complete first and renamed last.
    """
    from mixjax.run.checkpoints import FOLDER, MARK

    names = (path.parent.name for path in workdir.glob(f"{FOLDER}/*/{MARK}"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def start(flags: list[str], workdir: Path) -> subprocess.Popen:
    """Starts or continues the run; its output goes to <workdir>.txt."""
    command = [sys.executable, "-m", "mixjax.main", *flags, f"--workdir={workdir}"]
    with open(workdir.with_name(workdir.name + ".txt"), "a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


def finish(flags: list[str], workdir: Path) -> float:
    """Completes the run; returns the seconds it took. UsageError if it fails."""
    begin = time.monotonic()
    expect(start(flags, workdir).wait(), (errors.DONE,), workdir)
    return time.monotonic() - begin


def expect(code: int, codes: tuple, workdir: Path) -> None:
    """UsageError with the last output of the run, unless it ended with `codes`."""
    if code not in codes:
        text = workdir.with_name(workdir.name + ".txt").read_text().strip()
        last_line = text.splitlines()[-1] if text else "nothing"
        raise errors.UsageError(f"the run ended with {code} and said: {last_line}")


def strike(flags: list[str], workdir: Path, number: int, seconds: float) -> Blow | None:
    """Sends a signal `seconds` after the start; None if the run was complete."""
    process = start(flags, workdir)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    code = process.wait()
    if code == errors.DONE:
        return None
    expect(code, (errors.PREEMPTED, -number), workdir)
    return Blow(seconds, code, last_step(workdir), saved_step(workdir))


def arrays(workdir: Path) -> dict:
    """{path: array} of the newest checkpoint."""
    from mixjax.run import checkpoints, console

    console.start()  # silences orbax
    with checkpoints.opened(str(workdir), "workdir") as (manager, step):
        tree = manager.item_metadata(step)["state"].tree
        return checkpoints.by_path(checkpoints.read_arrays(manager, step, tree))


def differences(one: Path, two: Path) -> list[str]:
    """The names of arrays that differ between two runs, and metrics.jsonl."""
    import numpy as np

    first, second = arrays(one), arrays(two)
    names = sorted(first.keys() | second.keys())

    def same(name):
        x, y = (np.asarray(tree[name]) for tree in (first, second))
        return (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())

    shared = first.keys() & second.keys()
    differing = [name for name in names if name not in shared or not same(name)]
    text = [(folder / "metrics.jsonl").read_bytes() for folder in (one, two)]
    return differing + ["metrics.jsonl"] * (text[0] != text[1])


def row(name: str, blows: list[Blow], differ: list[str]) -> str:
    """One row of the table."""
    lost = [max(blow.done - blow.saved, 0) for blow in blows]
    codes = sorted({blow.code for blow in blows})
    same = "equal to the last bit" if not differ else "NOT EQUAL: " + ", ".join(differ)
    if len(differ) > 3:
        same = f"NOT EQUAL: {', '.join(differ[:3])} and {len(differ) - 3} more"
    ends = " ".join(map(str, codes))
    return (
        f"{name:<8} {len(blows):>5}  {ends:<10} {sum(lost):>5} in all, "
        f"{max(lost, default=0):>3} at most   {same}"
    )


def batter(
    flags: list[str], whole: Path, number: int, moments: Iterator[float], signals: int
) -> tuple[list[Blow], list[str]]:
    """Sends `signals` signals to runs like `whole`: (blows, names of what differs).

    If a run completes before all signals were sent, another one follows.
    """
    blows, differ, nth = [], [], 0
    name = signal.Signals(number).name
    while True:
        folder = whole.with_name(f"{name.lower()}_{nth}")
        while len(blows) < signals:
            blow = strike(flags, folder, number, next(moments))
            if blow is None:
                break
            blows.append(blow)
            print(f"  {name} after {blow.seconds:.1f} s: exit {blow.code}, ", end="")
            print(f"{blow.done} steps done, {blow.saved} saved", flush=True)
        finish(flags, folder)
        differ += differences(whole, folder)
        if len(blows) == signals:
            return blows, differ
        nth += 1


def drill(flags: list[str], workdir: Path, signals: int, seed: int) -> bool:
    """Makes the runs and prints the table; returns whether all is as expected."""
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
        raise errors.UsageError(f"--workdir={workdir} is not empty; take another.")
    whole, chance = workdir / "unbroken", random.Random(seed)
    print("an undisturbed run", flush=True)
    seconds = finish(flags, whole)
    print(f"took {seconds:.0f} s; now the same with {signals} signals each", flush=True)
    moments = iter(lambda: chance.uniform(LISTENS, max(seconds, 2 * LISTENS)), None)
    good, lines = True, []
    for number in (signal.SIGTERM, signal.SIGKILL):
        blows, differ = batter(flags, whole, number, moments, signals)
        lines.append(row(number.name, blows, differ))
        lost = any(b.code != errors.PREEMPTED or b.done > b.saved for b in blows)
        good = good and not differ and not (number == signal.SIGTERM and lost)
    print(f"{'signal':<8} {'sent':>5}  {'exit':<10} {'steps lost':<24} the result")
    print("\n".join(lines))
    return good


def run(argv: list[str]) -> int:
    """Runs the drill that the flags describe; returns the exit code."""

    def work():
        known = ("signals", "seed", "workdir", "config")
        flags, changes = cli.flags(argv, known)
        numbers = {}
        for flag, usual in (("signals", "5"), ("seed", "0")):
            text = flags.get(flag, usual)
            if not text.isdigit():
                raise errors.UsageError(f"--{flag}={text} is not a number.")
            numbers[flag] = int(text)
        recipe = flags.get("config", f"{ROOT}/configs/quickstart.py")
        small = (
            {} if "config" in flags else {f"config.{k}": v for k, v in SMALL.items()}
        )
        fields = small | {"config.log.every": 1} | changes
        run_flags = [f"--config={recipe}", *(f"--{k}={v}" for k, v in fields.items())]
        folder = Path(flags.get("workdir", "runs/drill")).expanduser().absolute()
        return errors.DONE if drill(run_flags, folder, **numbers) else errors.FAILED

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
