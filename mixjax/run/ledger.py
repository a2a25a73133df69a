"""The results of evaluations with all of their context, one small JSON file each.

An entry is the file <workdir>/eval/<name>/<step>.json. It holds the protocol
("knn/k=200", "finetune", "linear", "lowshot 1%"), the metrics, the length and hardware
of the run, its whole configuration, and that of the pre-training run whose weights it
started from. results/ledger/ keeps copies of such files. Nothing here needs jax, so
that tables of entries can be printed without it.
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
ORIGIN = "origin.json"  # in a workdir: what make_origin returned for its init_from
FIELDS = {  # the fields of an entry and their types
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
# The fields of a configuration that tables of results read.
CONFIG_FIELDS = ("seed", "epochs", "steps", "batch", "data", "model", "method")
# Entries below a run, a folder of runs, a folder of such folders, and results/.
PATTERNS = ("eval/*/*.json", "*/eval/*/*.json", "*/*/eval/*/*.json", "ledger/*.json")


# --- making entries -------------------------------------------------------------------


def make_entry(
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
    """Returns the entry of an evaluation; all its values are plain JSON types.

    name: the folder of the entry. config: the resolved configuration (ConfigDict or
    dict). effective_batch: the examples of one update. seconds: the training time,
    see training_seconds. hardware: such as "8 x NVIDIA H100". origin: see make_origin;
    {} if the run started from random weights. In the entry, `epochs` is null if
    config.steps sets the length instead, and a metric is null if it is not finite.
    """
    config = plain(config)
    progress = step / total_steps if total_steps else 0.0
    return {
        "schema": SCHEMA,
        "name": name,
        "protocol": protocol,
        "metrics": {k: finite_or_none(v) for k, v in metrics.items()},
        "step": int(step),
        "total_steps": int(total_steps),
        "complete": step == total_steps,
        "epochs": None if config["steps"] else round(progress * config["epochs"], 4),
        "k": parse_k(protocol),
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


def parse_k(protocol: str) -> int | None:
    """The k of a kNN protocol such as "knn/k=200"; None for other protocols."""
    match = re.search(r"\bk=(\d+)", protocol)
    return int(match[1]) if match else None


def plain(config) -> dict:
    """Returns a ConfigDict or dict as JSON would read it back: tuples become lists."""
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(fields, default=str))


def finite_or_none(value) -> float | int | None:
    """Returns a metric as a Python number, or None if it is not finite.

    JSON has neither NaN nor infinity.
    """
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None


def config_hash(config) -> str:
    """The sha256 of a resolved configuration, as JSON with sorted keys."""
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- facts about a run, from its folder -----------------------------------------------


def make_origin(workdir: Path, step: int) -> dict:
    """Describes a run at its checkpoint of `step`, for runs that start from it.

    Returns config, config_hash, step, commit, and `complete`, which is True if the run
    ended with this step.
    """
    config, done = parse(workdir / "config.json"), workdir / "DONE"
    return {
        "config": config,
        "config_hash": config_hash(config),
        "step": step,
        "complete": done.exists() and int(done.read_text()) == step,
        "commit": read_commit(workdir),
    }


def write_origin(workdir: Path, origin: Mapping) -> None:
    """Writes origin.json into `workdir`, or no file if the origin is {}."""
    file = workdir / ORIGIN
    # A start that never reached a checkpoint may have left the file of another origin.
    file.unlink(missing_ok=True)
    if origin:
        atomic_write.write(file, json.dumps(origin, indent=1) + "\n")


def read_origin(workdir: Path) -> dict:
    """Returns the origin of the run in `workdir`, {} if it has none."""
    file = workdir / ORIGIN
    return parse(file) if file.exists() else {}


def read_commit(workdir: Path) -> str:
    """The commit in a run's git.txt, with "+" appended if there were local changes.

    Returns "" if the folder has no git.txt.
    """
    file = workdir / "git.txt"
    text = file.read_text() if file.exists() else ""
    # The first line is the commit; the rest is the diff of the working tree.
    first_line, _, diff = text.partition("\n")
    return first_line + "+" * bool(diff.strip())


def training_seconds(workdir: Path) -> float:
    """The time that a run spent on its steps, from perf.jsonl.

    Leaves out evaluations and compilation. Steps that an interrupted run repeated count
    once.
    """
    file, total, last_step = workdir / "perf.jsonl", 0.0, 0
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
            step, step_seconds = record["step"], record["perf/step_ms"] / 1e3
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed run left unfinished
        # After a resume the steps start again at a lower number: only new ones count.
        total += max(step - last_step, 0) * step_seconds
        last_step = max(step, last_step)
    return total


# --- entries as files -----------------------------------------------------------------


def write(folder: Path, entry: Mapping) -> Path:
    """Writes folder/eval/<name>/<step>.json atomically and returns its path."""
    check(entry, f"the entry of {entry.get('name')!r}")
    path = folder / "eval" / entry["name"] / f"{entry['step']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # allow_nan=False: NaN would make the file invalid JSON for other readers.
    atomic_write.write(path, json.dumps(entry, indent=1, allow_nan=False) + "\n")
    return path


def make_result_writer(
    workdir: Path, config, total_steps: int, hardware: str
) -> Callable:
    """Returns the function (step, metrics) -> the path of the entry it has written.

    The protocol is the common prefix of the metrics' names and names the folder, so
    that evaluations with two values of k do not overwrite each other. For accuracies,
    the best value of the run so far is added as "<metric>_best", because some code
    bases report it.
    """
    workdir = Path(workdir).expanduser()

    def write_result(step: int, metrics: Mapping) -> Path:
        protocol = next(iter(metrics)).rpartition("/")[0]
        name = protocol.replace("/", "-")
        earlier = earlier_entries(workdir / "eval" / name, step)
        entry = make_entry(
            name=name,
            protocol=protocol,
            metrics={**metrics, **best_accuracies(metrics, earlier)},
            config=config,
            step=step,
            total_steps=total_steps,
            effective_batch=config.batch,
            examples_seen=step * config.batch,
            seconds=training_seconds(workdir),
            hardware=hardware,
            commit=read_commit(workdir),
            origin=read_origin(workdir),
        )
        return write(workdir, entry)

    return write_result


def earlier_entries(folder: Path, step: int) -> list[dict]:
    """The entries in an evaluation's folder from before `step`.

    A resumed run may have written later ones before it was interrupted.
    """
    return [parse(path) for path in folder.glob("*.json") if int(path.stem) < step]


def best_accuracies(metrics: Mapping, earlier: list[dict]) -> dict:
    """{"<metric>_best": value} for top-1 accuracies and mAP."""
    best = {}
    for metric, value in metrics.items():
        if metric.endswith(("top1", "map")):
            values = [entry["metrics"].get(metric, value) for entry in earlier]
            best[f"{metric}_best"] = max([value, *values])
    return best


def read(folder: Path) -> list[dict]:
    """Returns the entries of a run, of a folder of runs, or of results/.

    They are sorted by path. Raises UsageError if `folder` does not exist or a file in
    it is not a valid entry.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of runs or results.")
    patterns = ("*.json",) if folder.name == "ledger" else PATTERNS
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    entries = []
    for path in paths:
        entry = parse(path)
        check(entry, str(path))
        entries.append(entry)
    return entries


def parse(path: Path) -> dict:
    """Returns the JSON object in a file; raises UsageError if it does not hold one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a {type(value).__name__}, not an object.")
    return value


def check(entry: Mapping, label: str) -> None:
    """Raises UsageError unless `entry` has all fields with values of their types.

    label: what the error message calls the entry.
    """
    if entry.get("schema") != SCHEMA:
        raise UsageError(
            f"{label} has schema {entry.get('schema')!r}; only schema {SCHEMA} is "
            f"supported."
        )
    for name, kind in FIELDS.items():
        if name not in entry:
            raise UsageError(f"{label} has no field {name!r}.")
        if not isinstance(entry[name], kind):
            raise UsageError(f"{label}: {name}={entry[name]!r} has the wrong type.")
    # The origin is {} or has a configuration as well.
    for section in filter(None, (entry, entry["origin"])):
        config = section.get("config", {})
        absent = [name for name in CONFIG_FIELDS if name not in config]
        if absent:
            raise UsageError(f"{label}: its config has no {', '.join(absent)}.")
    for metric, value in entry["metrics"].items():
        # bool is a subclass of int.
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UsageError(f"{label}: metric {metric}={value!r} is not a number.")
