"""python -m mixjax.drill [--signals=5] [--workdir=DIR] [--config=FILE] [--config.x=y]

Does on this machine what a scheduler does: stops and kills a small run at random
moments, starts it again each time, and compares what comes out with a run that was left
alone. Prints how many steps were lost, and whether all weights, the optimizer's state
and metrics.jsonl are equal to the last bit.

  --signals=N   how often each run is stopped (SIGTERM), and killed (SIGKILL)
  --seed=S      of the moments
  --workdir=DIR the folder for the three runs; runs/drill unless given
  --config=...  a recipe, its fields as for mixjax.main; the quickstart's, 60 steps

Exit codes: 0 all is equal and no signal cost a step, 1 not so, 2 bad flags.
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
SMALL = {  # fields of the quickstart, for half a minute
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
LISTENS = 0.5  # seconds after its start a process listens to signals


class Blow(NamedTuple):
    """One signal and what came of it."""

    seconds: float  # after the start
    code: int  # how the run ended
    done: int  # steps that were in metrics.jsonl
    saved: int  # steps in the newest checkpoint


def last_step(workdir: Path) -> int:
    """The newest step in metrics.jsonl, 0 without one."""
    file = workdir / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    last_step = 0
    for line in lines:
        try:
            last_step = max(last_step, json.loads(line)["step"])
        except ValueError:
            continue  # half a line, of a run that was killed
    return last_step


def saved_step(workdir: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one.

    A name that is no number is a checkpoint being written: its mark comes first,
    its name last.
    """
    from mixjax.run.checkpoints import FOLDER, MARK

    names = (path.parent.name for path in workdir.glob(f"{FOLDER}/*/{MARK}"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def start(flags: list[str], workdir: Path) -> subprocess.Popen:
    """Begins or continues the run; what it prints goes to <workdir>.txt."""
    command = [sys.executable, "-m", "mixjax.main", *flags, f"--workdir={workdir}"]
    with open(workdir.with_name(workdir.name + ".txt"), "a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


def finish(flags: list[str], workdir: Path) -> float:
    """Runs to the end; seconds that took. UsageError if it does not get there."""
    begin = time.monotonic()
    expect(start(flags, workdir).wait(), (errors.DONE,), workdir)
    return time.monotonic() - begin


def expect(code: int, codes: tuple, workdir: Path) -> None:
    """UsageError with what the run said last, unless it ended with one of `codes`."""
    if code not in codes:
        text = workdir.with_name(workdir.name + ".txt").read_text().strip()
        last_line = text.splitlines()[-1] if text else "nothing"
        raise errors.UsageError(f"the run ended with {code} and said: {last_line}")


def strike(flags: list[str], workdir: Path, number: int, seconds: float) -> Blow | None:
    """Sends a signal some `seconds` after the start; None if the run was over."""
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

    console.start()  # without orbax' own
    with checkpoints.opened(str(workdir), "workdir") as (manager, step):
        tree = manager.item_metadata(step)["state"].tree
        return checkpoints.by_path(checkpoints.read_arrays(manager, step, tree))


def differences(one: Path, two: Path) -> list[str]:
    """What differs between two finished runs: names of arrays, metrics.jsonl."""
    import numpy as np

    first, second = arrays(one), arrays(two)
    names = sorted(first.keys() | second.keys())

    def same(name):
        x, y = (np.asarray(tree[name]) for tree in (first, second))
        return (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())

    both = first.keys() & second.keys()
    differing = [name for name in names if name not in both or not same(name)]
    text = [(folder / "metrics.jsonl").read_bytes() for folder in (one, two)]
    return differing + ["metrics.jsonl"] * (text[0] != text[1])


def row(name: str, blows: list[Blow], differ: list[str]) -> str:
    """A line of the table."""
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
    """Sends `signals` signals to runs like `whole`: the blows, and what differs.

    A run that is complete before all were sent is followed by another one.
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
    """Makes the runs and prints the table; whether all is as it should be."""
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
        raise errors.UsageError(f"--workdir={workdir} is not empty; take another.")
    whole, chance = workdir / "unbroken", random.Random(seed)
    print("a run that is left alone", flush=True)
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
    """Drills as the flags (without the program's name) say; returns the exit code."""

    def work():
        known = ("signals", "seed", "workdir", "config")
        given, changes = cli.flags(argv, known)
        numbers = {}
        for flag, usual in (("signals", "5"), ("seed", "0")):
            text = given.get(flag, usual)
            if not text.isdigit():
                raise errors.UsageError(f"--{flag}={text} is not a number.")
            numbers[flag] = int(text)
        recipe = given.get("config", f"{ROOT}/configs/quickstart.py")
        small = (
            {} if "config" in given else {f"config.{k}": v for k, v in SMALL.items()}
        )
        fields = small | {"config.log.every": 1} | changes
        flags = [f"--config={recipe}", *(f"--{k}={v}" for k, v in fields.items())]
        folder = Path(given.get("workdir", "runs/drill")).expanduser().absolute()
        return errors.DONE if drill(flags, folder, **numbers) else errors.FAILED

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
