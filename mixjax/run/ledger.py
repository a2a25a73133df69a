"""What was measured, with what it takes to place it: one small JSON file a number.

<workdir>/eval/<name>/<step>.json is an entry: the protocol ("knn/k=200", "finetune",
"linear", "lowshot 1%"), the metrics, how long and on what, the whole configuration, and
that of the pre-training run it began from. results/ledger/ keeps copies of such files.
Nothing here needs jax, so that tables of entries are printed without it.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mixjax.errors import UsageError
from mixjax.runtime import atomic_write

SCHEMA = 1
ORIGIN = "origin.json"  # in a workdir: `origin` of the run that this one began from
FIELDS = {  # of an entry, and what each must be
    "schema": int,
    "name": str,
    "protocol": str,
    "metrics": dict,
    "step": int,
    "total_steps": int,
    "complete": bool,
    "epochs": (int, float, type(None)),
    "k": (int, type(None)),
    "effective_batch": int,
    "examples_seen": int,
    "seeds": list,
    "hours": (int, float),
    "hardware": str,
    "commit": str,
    "config_hash": str,
    "config": dict,
    "origin": dict,
}
NEEDED = ("seed", "epochs", "steps", "batch", "data", "model", "method")  # of a config
PLACES = ("eval/*/*.json", "*/eval/*/*.json", "*/*/eval/*/*.json", "ledger/*.json")


def entry(
    *,
    name: str,
    protocol: str,
    metrics: Mapping,
    config,
    step: int,
    total_steps: int,
    effective_batch: int,
    examples_seen: int,
    seconds: float,
    hardware: str,
    commit: str,
    origin: Mapping,
) -> dict:
    """What an evaluation found, as an entry; everything in it is JSON's own.

    name: the section of config.evals, the folder of the entry. config: the resolved
    configuration (ConfigDict or dict). step of total_steps: how far the run was.
    effective_batch: examples of one update. seconds: of training, see `seconds`.
    hardware: "8 x NVIDIA H100". origin: see `origin`; {} if there is none. `epochs` is
    null where config.steps squeezes the recipe, a metric where it is not finite.
    """
    config = plain(config)
    share = step / total_steps if total_steps else 0.0
    return {
        "schema": SCHEMA,
        "name": name,
        "protocol": protocol,
        "metrics": {k: number(v) for k, v in metrics.items()},
        "step": int(step),
        "total_steps": int(total_steps),
        "complete": step == total_steps,
        "epochs": None if config["steps"] else round(share * config["epochs"], 4),
        "k": neighbours(protocol),
        "effective_batch": int(effective_batch),
        "examples_seen": int(examples_seen),
        "seeds": [config["seed"]],
        "hours": round(seconds / 3600, 4),
        "hardware": hardware,
        "commit": commit,
        "config_hash": config_hash(config),
        "config": config,
        "origin": plain(origin),
    }


def neighbours(protocol: str) -> int | None:
    """The k of a protocol such as "knn/k=200"."""
    match = re.search(r"\bk=(\d+)", protocol)
    return int(match[1]) if match else None


def plain(config) -> dict:
    """A ConfigDict or dict as a JSON file gives it back (tuples are lists there)."""
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(fields, default=str))


def number(value) -> float | int | None:
    """A metric as JSON has it; None if it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None


def config_hash(config) -> str:
    """sha256 of the sorted JSON of a resolved configuration."""
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def origin(workdir: Path, step: int) -> dict:
    """What a run was at its checkpoint of `step`, for entries of a run begun from it.

    config, config_hash, step, commit, and whether that step is its end (complete).
    """
    config, done = parse(workdir / "config.json"), workdir / "DONE"
    return {
        "config": config,
        "config_hash": config_hash(config),
        "step": step,
        "complete": done.exists() and int(done.read_text()) == step,
        "commit": commit(workdir),
    }


def write_origin(workdir: Path, origin: Mapping) -> None:
    """Writes the origin of the run in `workdir` to its origin.json; none for {}."""
    file = workdir / ORIGIN
    file.unlink(missing_ok=True)  # of a start that did not get to a checkpoint
    if origin:
        atomic_write.write(file, json.dumps(origin, indent=1) + "\n")


def read_origin(workdir: Path) -> dict:
    """What write_origin wrote."""
    file = workdir / ORIGIN
    return parse(file) if file.exists() else {}


def commit(workdir: Path) -> str:
    """The commit in a run's git.txt, with "+" if there were changes beside it."""
    file = workdir / "git.txt"
    first, _, changes = file.read_text().partition("\n") if file.exists() else ("",) * 3
    return first + "+" * bool(changes.strip())


def seconds(workdir: Path) -> float:
    """How long the steps of a run took, from its perf.jsonl; each counted once.

    Evaluations, compilation and what an interruption made come twice are not in it.
    """
    file, total, last = workdir / "perf.jsonl", 0.0, 0
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
            step, each = record["step"], record["perf/step_ms"] / 1e3
        except (ValueError, KeyError, TypeError):
            continue  # half a line, of a run that was killed
        total += max(step - last, 0) * each
        last = max(step, last)
    return total


def write(folder: Path, entry: Mapping) -> Path:
    """Writes workdir/eval/<name>/<step>.json in one move; returns where it is."""
    check(entry, f"the entry of {entry.get('name')!r}")
    path = folder / "eval" / entry["name"] / f"{entry['step']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write.write(path, json.dumps(entry, indent=1, allow_nan=False) + "\n")
    return path


def keeper(workdir: Path, config, total_steps: int, hardware: str) -> Callable:
    """(step, metrics) -> the path of the entry written for an evaluation.

    The protocol is what the metrics' names begin with, and names the folder: two values
    of k do not overwrite each other. Of accuracies the best so far
    in this run is added, as "<metric>_best": some code bases report that one.
    """
    workdir = Path(workdir).expanduser()

    def keep(step: int, metrics: Mapping) -> Path:
        protocol = next(iter(metrics)).rpartition("/")[0]
        name = protocol.replace("/", "-")
        folder = workdir / "eval" / name
        past = [parse(p) for p in folder.glob("*.json") if int(p.stem) < step]
        best = {}
        for metric, value in metrics.items():
            if metric.endswith(("top1", "map")):
                values = [e["metrics"].get(metric, value) for e in past]
                best[f"{metric}_best"] = max([value, *values])
        result = entry(
            name=name,
            protocol=protocol,
            metrics={**metrics, **best},
            config=config,
            step=step,
            total_steps=total_steps,
            effective_batch=config.batch,
            examples_seen=step * config.batch,
            seconds=seconds(workdir),
            hardware=hardware,
            commit=commit(workdir),
            origin=read_origin(workdir),
        )
        return write(workdir, result)

    return keep


def read(folder: Path) -> list[dict]:
    """The entries of a run, of a folder of runs, or of results/; in order of files.

    UsageError if there is no such folder, or a file in it is no entry.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of runs or of results.")
    places = ("*.json",) if folder.name == "ledger" else PLACES
    entries = []
    for path in sorted({path for place in places for path in folder.glob(place)}):
        entries.append(parse(path))
        check(entries[-1], str(path))
    return entries


def parse(path: Path) -> dict:
    """The JSON object in a file; UsageError says in one sentence what it is instead."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a {type(value).__name__}, not an object.")
    return value


def check(entry: Mapping, what: str) -> None:
    """UsageError unless `entry` has every field, each of its type; `what` names it."""
    if entry.get("schema") != SCHEMA:
        raise UsageError(
            f"{what} is of schema {entry.get('schema')!r}; only {SCHEMA} is known."
        )
    for name, kind in FIELDS.items():
        if name not in entry:
            raise UsageError(f"{what} has no field {name!r}.")
        if not isinstance(entry[name], kind):
            raise UsageError(f"{what}: {name}={entry[name]!r} is of the wrong type.")
    for part in filter(None, (entry, entry["origin"])):
        absent = [name for name in NEEDED if name not in part.get("config", {})]
        if absent:
            raise UsageError(f"{what}: its config has no {', '.join(absent)}.")
    for metric, value in entry["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UsageError(f"{what}: metric {metric}={value!r} is no number.")
