"""Whole CIFAR-10 runs of the recipes for gpu.py, each until it is done or time is up.

A run is `python -m mixjax.main` in a folder of its own; at the deadline it gets
SIGTERM, saves its state and ends with code 75, and the next call goes on from there.
One that is complete becomes cifar10_<name>.json beside the other figures.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support import record

DONE, PREEMPTED = 0, 75
GRACE = 25.0  # seconds to save the state in
LEAST = 60.0  # seconds that are worth starting or continuing a run for
SEEN = {"evals.knn.every_epochs": 10.0, "evals.knn.bank": 0, "evals.knn.queries": 0}
RUNS = {  # name -> (recipe, fields): what is written oftener than the recipe says
    "mae": ("mae_cifar.py:epochs=200", SEEN),
    "moco": ("c10_moco.py:epochs=200,mixture=none", {}),
    "moco_unmix": ("c10_moco.py:epochs=200,mixture=unmix", {}),
    "moco_mixmask": ("c10_moco.py:epochs=200,mixture=mixmask", {}),
}
TINY = {"steps": 4, "batch": 16, "log.every": 1, "evals.knn.k": 5}
TINY |= {"evals.pictures.count": 2, "evals.knn.queries": 20}
TINY_MAE = {"encoder.width": 16, "encoder.depth": 1, "encoder.heads": 2}
TINY_MAE |= {"decoder.width": 16, "decoder.heads": 2}
TINY_MOCO = {"encoder.widths": (8, 16), "encoder.layers": (1, 1)}
TINY_MOCO |= {"encoder.stem_width": 8}


def train(options, changes: list[str], left: Callable, env: dict) -> Iterator:
    """Yields (name, {steps, hours, and last or reason}) of one run after the other.

    options: data, runs, tiny, json of gpu.py. changes: further --config.x=y for all.
    """
    for name in RUNS:
        workdir, command = options.runs / name, flags(name, options, changes)
        code, begin = DONE, time.monotonic()
        if not (workdir / "DONE").exists():
            if left() < LEAST and not options.tiny:
                yield name, {"name": name, "reason": f"no time: {left():.0f} s left"}
                continue
            whole = [sys.executable, "-m", "mixjax.main", *command]
            code = until([*whole, f"--workdir={workdir}"], left, GRACE, env)
        hours = spend(workdir, time.monotonic() - begin)
        found = {"name": name, "steps": last_step(workdir), "hours": hours}
        if code == DONE:
            found["last"] = write(name, options, command, hours)
        elif code == PREEMPTED:
            found["reason"] = "no time: state saved, the same command goes on"
        else:
            found["reason"] = f"ended with code {code}"
        yield name, found


def flags(name: str, options, changes: list[str]) -> list[str]:
    """The command line of a run, but for its workdir."""
    recipe, fields = RUNS[name]
    fields = {"data.source": f"npz:{options.data}", **fields}
    if options.tiny:
        more = TINY_MAE if name == "mae" else TINY_MOCO
        fields |= TINY | {f"model.{k}": v for k, v in more.items()}
        fields |= {"method.objective.queue": 64} if name != "mae" else {}
    path = os.path.relpath(record.ROOT / "configs")
    given = [f"--config.{k}={v}" for k, v in fields.items()]
    return [f"--config={path}/{recipe}", *given, *changes]


def until(command: list[str], left: Callable, grace: float, env: dict) -> int:
    """Runs a command; SIGTERM `grace` seconds before the end, SIGKILL at the end."""
    process = subprocess.Popen(command, env={**os.environ, **env})
    try:
        return process.wait(timeout=max(0.1, left() - grace))
    except subprocess.TimeoutExpired:
        return leave(process, max(1.0, min(grace, left())))
    except BaseException:  # this process itself is to end
        leave(process, grace)
        raise


def leave(process: subprocess.Popen, grace: float) -> int:
    """SIGTERM, and SIGKILL after `grace` seconds; the exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def spend(workdir: Path, seconds: float) -> float:
    """Adds to the seconds that a run took so far -> hours."""
    path = workdir / "seconds.txt"
    total = seconds + (float(path.read_text()) if path.exists() else 0.0)
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{total:.1f}\n")
    return total / 3600


def lines(workdir: Path) -> list[dict]:
    """What metrics.jsonl has; a last line that is not whole is left out."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]


def last_step(workdir: Path) -> int:
    """The last step that was written down."""
    return max((line["step"] for line in lines(workdir)), default=0)


def curves(found: list[dict], most: int) -> dict[str, list]:
    """{metric: [[epoch, value], ...]}, `most` points at most.

    The loss is the mean of an epoch; of kNN and others every value there is.
    """
    told = [x for x in found if "train/epoch" in x]
    per_epoch = told[-1]["step"] / told[-1]["train/epoch"]
    losses: dict[int, list[float]] = {}
    for line in told:
        epoch = max(1, -(-line["step"] // max(1, round(per_epoch))))
        losses.setdefault(epoch, []).append(line["train/loss"])
    loss = [[epoch, sum(v) / len(v)] for epoch, v in losses.items()]
    points = {"train/loss": loss}
    names = {k for x in found for k in x if k.startswith(("knn/", "health/"))}
    for name in sorted(n for n in names if not n.endswith(("/examples", "/bank"))):
        there = [x for x in found if name in x]
        points[name] = [[round(x["step"] / per_epoch, 2), x[name]] for x in there]
    return {name: thin(values, most) for name, values in points.items()}


def thin(points: list, most: int) -> list:
    """Evenly spread points, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def write(name: str, options, command: list[str], hours: float) -> dict:
    """Writes cifar10_<name>.json -> the last value of every curve."""
    workdir = options.runs / name
    found = lines(workdir)
    drawn = curves(found, most=50)
    last = {metric: points[-1][1] for metric, points in drawn.items()}
    config = json.loads((workdir / "config.json").read_text())
    text = " ".join(["python -m mixjax.main", *command])
    devices = re.search(r"^devices: (.*)$", (workdir / "env.txt").read_text(), re.M)
    whole = {
        "command": text.replace(str(options.data), Path(options.data).name),
        "commit": options.commit or record.commit(),
        "device": devices[1].partition(" as ")[0] if devices else "",
        "versions": record.versions(),
        "seeds": [config["seed"]],
        "epochs": next(x for x in found[::-1] if "train/epoch" in x)["train/epoch"],
        "steps": found[-1]["step"],
        "hours": hours,
        "last": last,
        "curves": drawn,
    }
    path = options.json.parent / f"cifar10_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return last
