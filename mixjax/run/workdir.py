"""The folder of a run: may it be used, is it the same run, what made it.

config.json  the resolved configuration     env.txt  versions, devices, command
git.txt      commit and uncommitted changes parameters.txt  every tensor
origin.json  the run that it began from, if any
metrics.jsonl  perf.jsonl  events.out.tfevents.*  train.log  heartbeats/
checkpoints/<step>/  figures/  DONE
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from clu import parameter_overview

from mixjax.config.recipes import flat
from mixjax.errors import UsageError
from mixjax.runtime.atomic_write import write

# A run may continue with other values here: they change its pace or what is written,
# never what is learned.
HARMLESS = (
    r"^(log|checkpoint|evals|mesh|watchdog)\.",
    r"^data\.(threads|prefetch|eval_batch|directory)$",
    r"^model\.\w+\.(remat|scan)$",
    r"^accumulate$",
)
METHOD = "method.name"
NAMED = 6  # changed fields in a sentence
# A field that runs did not record at first, beside one that they did, and its meaning.
NEWER = ("method.mixture.name", "method.mixture.chunk", "mixup_cutmix")


def check_config(old: Mapping, new: Mapping, workdir: Path) -> None:
    """UsageError that names the fields in which a run may not differ from its past.

    Of another method's run that would be most: its name first, the rest counted.
    """
    before, after = flat(old), flat(new)
    newer, beside, meaning = NEWER
    for fields in (before, after):
        if beside in fields:
            fields.setdefault(newer, meaning)
    changed = [
        f"{k} ({before.get(k, 'absent')!r} -> {after.get(k, 'absent')!r})"
        for k in sorted(before.keys() | after.keys(), key=lambda k: (k != METHOD, k))
        if before.get(k, "absent") != after.get(k, "absent")
        and not any(re.search(pattern, k) for pattern in HARMLESS)
    ]
    if changed:
        more = len(changed) - NAMED
        changed[NAMED:] = [f"and {more} more"] if more > 0 else []
        raise UsageError(
            f"workdir {workdir} belongs to a run with another config: "
            f"{', '.join(changed)}; take another --workdir or the old values."
        )


def as_json(config) -> dict:
    """A ConfigDict as what a JSON file gives back (tuples are lists there)."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def config_of(path: str) -> dict:
    """The configuration of the run in workdir `path`, for init_from."""
    saved = Path(path).expanduser() / "config.json"
    if not saved.is_file():
        raise UsageError(
            f"init_from={path}: neither a file nor a run, as {saved} does not exist."
        )
    return json.loads(saved.read_text())


class Workdir:
    """An open workdir, locked until closed; `finished` if its run is complete.

    process: which one of those that share the folder; only the first, 0, locks and
    writes it.
    """

    def __init__(self, path: str, config, process: int = 0):
        self.path, self.process = Path(path).expanduser().absolute(), process
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            name = ".lock" if process == 0 else f".lock.{process}"
            self._lock = open(self.path / name, "a+")
        except OSError as error:
            raise UsageError(f"--workdir={path} cannot be written: {error}.") from error
        self._settings = as_json(config)
        try:
            self._check(path)
        except UsageError:
            self._lock.close()
            raise

    def _check(self, path: str) -> None:
        """UsageError if another run has the folder, now or before."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"--workdir={path} is in use by another run.") from error
        if not any(self.path.glob("checkpoints/[0-9]*")):
            return
        saved = self.path / "config.json"
        if not saved.exists():
            raise UsageError(
                f"--workdir={path} has checkpoints but no config.json; take another."
            )
        check_config(json.loads(saved.read_text()), self._settings, self.path)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error) -> None:
        self._lock.close()

    @property
    def finished(self) -> bool:
        return (self.path / "DONE").exists()

    def finish(self, step: int) -> None:
        """Marks the run as complete: the same command then does nothing."""
        if self.process:
            return
        write(self.path / "DONE", f"{step}\n")

    def record(self, devices: str, params) -> None:
        """Writes config.json, env.txt, git.txt and parameters.txt.

        From here on the folder belongs to this config. params: arrays or shapes.
        """
        if self.process:
            return
        settings = json.dumps(self._settings, indent=2)
        write(self.path / "config.json", settings + "\n")
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        write(self.path / "parameters.txt", table + "\n")
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
        packages += ("tensorflow-datasets", "numpy", "ml_collections", "clu", "chex")
        lines = [f"python {platform.python_version()}, {platform.platform()}"]
        lines += [f"{name} {_version(name)}" for name in packages]
        lines += [f"devices: {devices}", "command: " + " ".join(sys.argv)]
        names = ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TFDS_DATA_DIR")
        lines += [f"{n}={os.environ[n]}" for n in names if n in os.environ]
        write(self.path / "env.txt", "\n".join(lines) + "\n")
        here = Path(__file__).parents[1]
        write(self.path / "git.txt", commit(here) + _git(here, "diff", "HEAD"))


def commit(package: Path) -> str:
    """The commit of a checkout, or of what `git archive` made of one, as a line."""
    archived = (package / "COMMIT").read_text()  # git puts the commit there
    if not archived.startswith("$"):
        return archived
    return _git(package, "rev-parse", "HEAD") or "not a git checkout\n"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _git(folder: Path, *args: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
