"""The folder of a run: locked while in use, bound to one config, with its provenance.

config.json  the resolved configuration     env.txt  versions, devices, command
git.txt      commit and uncommitted changes parameters.txt  every tensor
origin.json  the run that its weights came from, if any
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

# Fields that a continued run may change: they affect its speed or what it writes, never
# what it learns.
HARMLESS = (
    r"^(log|checkpoint|evals|mesh|watchdog)\.",
    r"^data\.(threads|prefetch|eval_batch|directory)$",
    r"^model\.\w+\.(remat|scan)$",
    r"^accumulate$",
)
METHOD = "method.name"
LISTED_CHANGES = 6  # changed fields that an error message lists
# (a field that early runs did not record, one beside it that they did, the value that
# the newer field had implicitly)
NEWER_FIELD = ("method.mixture.name", "method.mixture.chunk", "mixup_cutmix")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PACKAGES += ("tensorflow-datasets", "numpy", "ml_collections", "clu", "chex")
# Environment variables that change what a run computes or reads.
VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TFDS_DATA_DIR")


def check_config(old: Mapping, new: Mapping, workdir: Path) -> None:
    """Raises UsageError if a run's new config changes what it learns.

    The message lists the changed fields, the method's name first, as a different method
    changes most others too; it counts those beyond LISTED_CHANGES.
    """
    before, after = flat(old), flat(new)
    newer, neighbour, implicit_value = NEWER_FIELD
    for fields in (before, after):
        if neighbour in fields:
            fields.setdefault(newer, implicit_value)
    names = sorted(before.keys() | after.keys(), key=lambda k: (k != METHOD, k))
    changes = [
        f"{name} ({before.get(name, 'absent')!r} -> {after.get(name, 'absent')!r})"
        for name in names
        if before.get(name, "absent") != after.get(name, "absent")
        and not any(re.search(pattern, name) for pattern in HARMLESS)
    ]
    if changes:
        unlisted = len(changes) - LISTED_CHANGES
        if unlisted > 0:
            changes[LISTED_CHANGES:] = [f"and {unlisted} more"]
        raise UsageError(
            f"workdir {workdir} belongs to a run with another config: "
            f"{', '.join(changes)}; choose another --workdir or restore the old values."
        )


def as_json(config) -> dict:
    """Returns a ConfigDict as a JSON file would give it back: tuples become lists."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def read_config(path: str) -> dict:
    """Reads the configuration of the run in workdir `path`, for init_from."""
    saved = Path(path).expanduser() / "config.json"
    if not saved.is_file():
        raise UsageError(
            f"init_from={path}: neither a file nor a run, as {saved} does not exist."
        )
    return json.loads(saved.read_text())


class Workdir:
    """An open workdir, locked until it is closed.

    process: the index of this process among those that share the folder. Each locks a
    file of its own; only process 0 writes config.json, DONE and the other records.
    """

    def __init__(self, path: str, config, process: int = 0):
        self.path, self.process = Path(path).expanduser().absolute(), process
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            name = ".lock" if process == 0 else f".lock.{process}"
            # Mode "a+" creates the file without emptying one that is in use.
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
        """Raises UsageError if another run uses the folder or has filled it before."""
        try:
            # The kernel releases the lock when the process ends, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"--workdir={path} is in use by another run.") from error
        # Without a checkpoint there is nothing to continue: any config may start.
        if not any(self.path.glob("checkpoints/[0-9]*")):
            return
        saved = self.path / "config.json"
        if not saved.exists():
            raise UsageError(
                f"--workdir={path} has checkpoints but no config.json; choose another."
            )
        check_config(json.loads(saved.read_text()), self._settings, self.path)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error) -> None:
        self._lock.close()

    @property
    def finished(self) -> bool:
        """True if the run in this folder is complete."""
        return (self.path / "DONE").exists()

    def finish(self, step: int) -> None:
        """Marks the run as complete, so that the same command does nothing again."""
        if self.process:
            return
        write(self.path / "DONE", f"{step}\n")

    def record(self, devices: str, params) -> None:
        """Writes config.json, env.txt, git.txt and parameters.txt.

        From then on the folder belongs to this config, so this comes after all checks
        of the config. params: arrays or shapes.
        """
        if self.process:
            return
        settings = json.dumps(self._settings, indent=2)
        write(self.path / "config.json", settings + "\n")
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        write(self.path / "parameters.txt", table + "\n")
        write(self.path / "env.txt", describe_environment(devices))
        package = Path(__file__).parents[1]
        diff = _git(package, "diff", "HEAD")
        write(self.path / "git.txt", checkout_commit(package) + diff)


def describe_environment(devices: str) -> str:
    """The text of env.txt: versions, devices, command, environment variables."""
    lines = [f"python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines += [f"devices: {devices}", "command: " + " ".join(sys.argv)]
    lines += [f"{n}={os.environ[n]}" for n in VARIABLES if n in os.environ]
    return "\n".join(lines) + "\n"


def checkout_commit(package: Path) -> str:
    """The commit of a git checkout or of an unpacked `git archive`, as a line."""
    # `git archive` replaces the "$Format:...$" in this file by the commit.
    archived = (package / "COMMIT").read_text()
    if not archived.startswith("$"):
        return archived
    return _git(package, "rev-parse", "HEAD") or "not a git checkout\n"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _git(folder: Path, *args: str) -> str:
    """The output of a git command; "" if git is missing, fails or hangs."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=20,  # seconds; a stalled network file system must not stop a run
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
