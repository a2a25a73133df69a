"""Saving and restoring the training state; no other file names orbax.

A checkpoint is the state and a few notes in JSON: what the log still had to write, and
how long the metrics file was, so that a restart continues both exactly. Saving runs in
the background; a checkpoint counts once its commit mark is written. Files that were cut
afterwards are found by their sizes.
"""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixjax.errors import Unsaved, UsageError
from mixjax.runtime import processes
from mixjax.runtime.atomic_write import write
from mixjax.sharding.meshes import path_name
from mixjax.state import TrainState

log = logging.getLogger("mixjax")
FOLDER = "checkpoints"
MARK = "commit_success.txt"  # orbax writes it when everything else is written
SIZES = "sizes.json"  # of all files, written when the mark is there
UNFINISHED = "its writing was not finished"


class Checkpoints:
    """The checkpoints of one workdir, to be used by all processes alike.

    One is due every `every` steps (0: never) and at `last`; the newest `keep` stay, and
    those at multiples of `keep_every` steps (0: none beyond the newest).
    """

    def __init__(
        self, workdir: Path, *, every: int, last: int, keep: int, keep_every: int
    ):
        self._every, self._last = every, last
        self._folder = Path(workdir).absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                cleanup_tmp_directories=True,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "notes": ocp.JsonCheckpointHandler(),
            },
        )
        self._newest = newest(self._manager, self._folder)
        self._writing: int | None = None

    def newest(self) -> int | None:
        """The step of the newest complete checkpoint, None in a fresh workdir.

        Waits for one that is being written.
        """
        self._finish()
        return self._newest

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        often = self._every > 0 and step % self._every == 0
        return step > 0 and (often or step == self._last)

    def save(self, step: int, state, notes: dict) -> None:
        """Starts saving; returns once the state may be donated to the next step.

        A step that is already there stays as it is. Unsaved if this save, or the one
        before it, cannot be written.
        """
        self._finish()
        if step == self._newest:
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
        )
        # Orbax copies to the host without saying so, which the training loop forbids.
        with self._said(step), jax.transfer_guard_device_to_host("allow"):
            self._manager.save(step, args=args, force=True)
        self._writing = step

    def _finish(self) -> None:
        """Waits for what is being written, and notes how large its files are."""
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        with self._said(step):
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                write_sizes(self._folder / str(step))
        self._newest = step

    @contextlib.contextmanager
    def _said(self, step: int):
        """Says which checkpoint failed, and which one is left."""
        try:
            yield
        except Exception as error:  # whatever file systems make of it
            left = "no earlier one is there"
            if self._newest is not None:
                left = f"that of step {self._newest} is complete"
            reason = str(error).strip().splitlines()[0]
            raise Unsaved(
                f"the checkpoint of step {step} could not be written ({reason}); {left}"
            ) from error

    def resume(self, layout) -> tuple | None:
        """(state, notes) of the newest checkpoint that can be read, None without any.

        layout: a tree of shapes and shardings. What is damaged or incomplete and newer
        is moved to checkpoints.damaged/, with a warning. UsageError if none can be
        read, or if tensors do not fit: then nothing is moved.
        """
        faults: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            faults[step] = damage(self._folder / str(step))
            if processes.anywhere(bool(faults[step])):
                continue
            try:
                found = self.restore(step, layout)
            except UsageError:
                raise
            except Exception as error:  # whatever orbax makes of a cut file
                faults[step] = str(error).strip().splitlines()[0][:200]
            if not processes.anywhere(bool(faults[step])):
                del faults[step]
                self._set_aside(faults)
                self._newest = step
                log.info("continuing from the checkpoint of step %d", step)
                return found
        if any(fault != UNFINISHED for fault in faults.values()):
            step, fault = next(iter(faults.items()))
            raise UsageError(
                f"none of the checkpoints in {self._folder} can be read, such as {step}"
                f" ({fault}); move the folder away to begin anew."
            )
        self._set_aside(faults)
        return None

    def _set_aside(self, faults: dict[int, str]) -> None:
        """Moves checkpoints to another folder, so that their steps can be saved."""
        if not faults:
            return
        aside = self._folder.with_name(FOLDER + ".damaged")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step in faults:
                shutil.rmtree(aside / str(step), ignore_errors=True)
                os.replace(self._folder / str(step), aside / str(step))
        processes.anywhere(False)  # all wait for the first
        self._manager.reload()
        said = "; ".join(f"{step} ({fault})" for step, fault in faults.items())
        log.warning("cannot be read, moved to %s: checkpoints %s", aside, said)

    def restore(self, step: int, layout) -> tuple:
        """(state, notes) of `step`, laid out as `layout`, a tree of shapes + shardings.

        UsageError names the first tensors that do not fit.
        """
        there = self._manager.item_metadata(step)["state"].tree
        compare(shapes_of(there), shapes_of(layout), f"checkpoint {step}")
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(layout), notes=ocp.args.JsonRestore()
            ),
        )
        return found["state"], found["notes"]

    def close(self) -> None:
        """Waits until the last save is complete, and lets go of the folder."""
        try:
            self._finish()
        finally:
            self._manager.close()


def newest(manager: ocp.CheckpointManager, folder: Path) -> int | None:
    """The newest step of which all is there."""
    whole = (s for s in manager.all_steps() if not damage(folder / str(s)))
    return max(whole, default=None)


def sizes(step: Path) -> dict[str, int]:
    """{path: bytes} of all files of a checkpoint but SIZES."""
    files = (p for p in step.rglob("*") if p.is_file() and p.name != SIZES)
    return {str(p.relative_to(step)): p.stat().st_size for p in files}


def write_sizes(step: Path) -> None:
    """Notes in a complete checkpoint how large its files are."""
    write(step / SIZES, json.dumps(sizes(step)) + "\n")


def damage(step: Path) -> str:
    """What is wrong with a checkpoint as far as its files' sizes tell; "" if nothing.

    Killed right after its mark was written, a checkpoint has no sizes; then only
    reading it tells.
    """
    if not (step / MARK).exists():
        return UNFINISHED
    if not (step / SIZES).exists():
        return ""
    try:
        noted = json.loads((step / SIZES).read_text())
    except ValueError:
        return f"{SIZES} is cut"
    there = sizes(step)
    for name, size in noted.items():
        if there.get(name) != size:
            return f"{name} has {there.get(name, 0)} of {size} bytes"
    return ""


def shapes_of(tree) -> dict[str, str]:
    """Path -> shape and type of all leaves; empty parts of a tree do not count."""
    return {
        path: f"{tuple(x.shape)} {np.dtype(x.dtype)}"
        for path, x in by_path(tree).items()
        if hasattr(x, "shape")
    }


def compare(found: dict, wanted: dict, what: str) -> None:
    """UsageError if two results of shapes_of differ; lists the first few."""
    wrong = [k for k in wanted if k not in found or found[k] != wanted[k]]
    surplus = [k for k in found if k not in wanted]
    if wrong or surplus:
        some = [
            f"{k} {found.get(k, 'missing')} instead of {wanted[k]}" for k in wrong[:4]
        ] + [f"{k} {found[k]} too many" for k in surplus[:4]]
        count = len(wrong) + len(surplus)
        raise UsageError(f"{what}: {count} tensors do not fit: {'; '.join(some)}.")


@contextlib.contextmanager
def opened(path: str, field: str):
    """(manager, newest step) of the checkpoints of workdir `path`, to read only."""
    folder = Path(path).expanduser().absolute() / FOLDER
    if not folder.is_dir():
        raise UsageError(f"{field}={path}: {folder} does not exist.")
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(
        folder, item_handlers=handlers, options=options
    ) as manager:
        step = newest(manager, folder)
        if step is None:
            raise UsageError(f"{field}={path}: {folder} holds no complete checkpoint.")
        yield manager, step


def read(manager: ocp.CheckpointManager, step: int, wanted: dict) -> dict:
    """The arrays of a checkpoint that `wanted` names, on its layout."""
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    return manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]


def load(path: str, layout: TrainState, field: str) -> tuple[TrainState, int]:
    """What the newest checkpoint of workdir `path` knows, but for the optimizer.

    layout: shapes and shardings; UsageError if the tensors differ. Returns the state,
    without opt_state, and its step.
    """
    names = ("params", "stats", "teacher", "memory")
    wanted = {name: getattr(layout, name) for name in names if getattr(layout, name)}
    with opened(path, field) as (manager, step):
        there = manager.item_metadata(step)["state"].tree
        there = {name: there.get(name, {}) for name in wanted}
        compare(shapes_of(there), shapes_of(wanted), f"{field}={path}")
        found = read(manager, step, wanted)
    return layout.replace(**found, opt_state={}, step=np.int32(step)), step


def part_names(manager: ocp.CheckpointManager, step: int) -> list[str]:
    """The parts of the network (encoder, ...) that a checkpoint has parameters of."""
    return list(manager.item_metadata(step)["state"].tree["params"])


def read_parts(
    manager: ocp.CheckpointManager, step: int, kind: str, names: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    """{part: {path inside it: array}} of the named parts; no other is read from disk.

    kind: "params" or "stats". A part that has none of that kind is {}.
    """
    sections = manager.item_metadata(step)["state"].tree.get(kind, {})
    parts = {}
    for name in names:
        tree = {kind: {name: sections.get(name, {})}}
        arrays = by_path(read_arrays(manager, step, tree))
        # Paths in the checkpoint begin with "<kind>/<part>/".
        parts[name] = {k.split("/", 2)[2]: v for k, v in arrays.items()}
    return parts


def read_arrays(manager: ocp.CheckpointManager, step: int, wanted: dict) -> dict:
    """Arrays of a checkpoint as they are in it, in the host's memory.

    wanted: a part of its tree, with metadata for leaves. Dicts in it that hold nothing,
    which orbax takes for leaves, are not in what comes back.
    """
    wanted = without_empty(wanted)
    if not wanted:
        return {}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    arguments = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
    return manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]


def without_empty(tree):
    """The tree without dicts that have no leaf below them."""
    if not isinstance(tree, dict):
        return tree
    kept = {k: without_empty(v) for k, v in tree.items()}
    return {k: v for k, v in kept.items() if v != {}}


def by_path(tree) -> dict:
    """{path: leaf} of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {path_name(path): leaf for path, leaf in leaves}


def nested(leaves: dict) -> dict:
    """The tree of dicts that by_path came from."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        here = tree
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = leaf
    return tree


def on_devices(array: np.ndarray, layout) -> jax.Array:
    """A host array, the same in every process, laid out as `layout` says."""
    return jax.make_array_from_callback(
        layout.shape, layout.sharding, lambda index: array[index]
    )
