"""Saves and restores the training state; only this file imports orbax.

A checkpoint holds the state and a few notes in JSON: the metrics not yet logged, and
the length of the metrics file, so that a restart continues both exactly. Saving runs in
the background; a checkpoint counts once its commit mark is written. Files that are
truncated later are recognised by their sizes.
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
MARK = "commit_success.txt"  # written by orbax after everything else
SIZES = "sizes.json"  # of all files, written after the mark
UNFINISHED = "its writing was not finished"


class Checkpoints:
    """The checkpoints of one workdir; every process makes the same calls.

    One is due every `every` steps (0: never) and at step `last`. The newest `keep` are
    kept, and those at multiples of `keep_every` steps (0: no others).
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

        Waits for the one that is being written, if any.
        """
        self._finish()
        return self._newest

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        multiple = self._every > 0 and step % self._every == 0
        return step > 0 and (multiple or step == self._last)

    def save(self, step: int, state, notes: dict) -> None:
        """Starts saving; returns once the state may be donated to the next step.

        A step that is already saved stays as it is. Raises Unsaved if this save, or the
        one before it, cannot be written.
        """
        self._finish()
        if step == self._newest:
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
        )
        # The training loop forbids implicit copies to the host, but orbax makes some.
        with self._naming(step), jax.transfer_guard_device_to_host("allow"):
            self._manager.save(step, args=args, force=True)
        self._writing = step

    def _finish(self) -> None:
        """Waits for the save in progress, and records the sizes of its files."""
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        with self._naming(step):
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                write_sizes(self._folder / str(step))
        self._newest = step

    @contextlib.contextmanager
    def _naming(self, step: int):
        """Turns errors into Unsaved, naming the step and what is still complete."""
        try:
            yield
        except Exception as error:  # file systems and orbax raise all kinds
            fallback = "no earlier one is there"
            if self._newest is not None:
                fallback = f"that of step {self._newest} is complete"
            reason = str(error).strip().splitlines()[0]
            raise Unsaved(
                f"the checkpoint of step {step} could not be written ({reason}); "
                f"{fallback}"
            ) from error

    def resume(self, layout) -> tuple | None:
        """(state, notes) of the newest readable checkpoint, None if there is none.

        layout: a tree of shapes and shardings. Newer ones that are damaged or
        incomplete are moved to checkpoints.damaged/, with a warning. UsageError if none
        can be read, or if tensors do not fit; nothing is moved then.
        """
        faults: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            faults[step] = damage(self._folder / str(step))
            # One process that cannot read a checkpoint is enough: all must agree.
            if processes.anywhere(bool(faults[step])):
                continue
            try:
                restored = self.restore(step, layout)
            except UsageError:
                raise
            except Exception as error:  # orbax raises all kinds for a damaged file
                faults[step] = str(error).strip().splitlines()[0][:200]
            if not processes.anywhere(bool(faults[step])):
                del faults[step]
                self._set_aside(faults)
                self._newest = step
                log.info("continuing from the checkpoint of step %d", step)
                return restored
        if any(fault != UNFINISHED for fault in faults.values()):
            step, fault = next(iter(faults.items()))
            raise UsageError(
                f"none of the checkpoints in {self._folder} can be read, such as {step}"
                f" ({fault}); move the folder away to start again."
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
        processes.anywhere(False)  # a barrier: the others wait for the first
        self._manager.reload()
        listed = "; ".join(f"{step} ({fault})" for step, fault in faults.items())
        log.warning("cannot be read, moved to %s: checkpoints %s", aside, listed)

    def restore(self, step: int, layout) -> tuple:
        """(state, notes) of `step` on `layout`, a tree of shapes and shardings.

        UsageError names the first tensors that do not fit.
        """
        saved = self._manager.item_metadata(step)["state"].tree
        compare(shapes_of(saved), shapes_of(layout), f"checkpoint {step}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(layout), notes=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["notes"]

    def close(self) -> None:
        """Waits until the last save is complete, and closes orbax's manager."""
        try:
            self._finish()
        finally:
            self._manager.close()


def newest(manager: ocp.CheckpointManager, folder: Path) -> int | None:
    """The newest step whose checkpoint is complete."""
    complete = (s for s in manager.all_steps() if not damage(folder / str(s)))
    return max(complete, default=None)


def sizes(step: Path) -> dict[str, int]:
    """{path: bytes} of all files of a checkpoint but SIZES."""
    files = (p for p in step.rglob("*") if p.is_file() and p.name != SIZES)
    return {str(p.relative_to(step)): p.stat().st_size for p in files}


def write_sizes(step: Path) -> None:
    """Records in a complete checkpoint how large its files are."""
    write(step / SIZES, json.dumps(sizes(step)) + "\n")


def damage(step: Path) -> str:
    """What is wrong with a checkpoint, by the sizes of its files; "" if nothing.

    A process that is killed right after the mark was written leaves no sizes; then only
    reading the checkpoint shows whether it is whole.
    """
    if not (step / MARK).exists():
        return UNFINISHED
    if not (step / SIZES).exists():
        return ""
    try:
        recorded = json.loads((step / SIZES).read_text())
    except ValueError:
        return f"{SIZES} is cut"
    actual = sizes(step)
    for name, size in recorded.items():
        if actual.get(name) != size:
            return f"{name} has {actual.get(name, 0)} of {size} bytes"
    return ""


def shapes_of(tree) -> dict[str, str]:
    """{path: shape and dtype as text} of all arrays in a tree."""
    return {
        path: f"{tuple(x.shape)} {np.dtype(x.dtype)}"
        for path, x in by_path(tree).items()
        if hasattr(x, "shape")
    }


def compare(actual: dict, wanted: dict, source: str) -> None:
    """UsageError if two results of shapes_of differ; lists the first few.

    source: of the actual ones, as the message names it.
    """
    wrong = [k for k in wanted if k not in actual or actual[k] != wanted[k]]
    surplus = [k for k in actual if k not in wanted]
    if wrong or surplus:
        examples = [
            f"{k} {actual.get(k, 'missing')} instead of {wanted[k]}" for k in wrong[:4]
        ] + [f"{k} {actual[k]} too many" for k in surplus[:4]]
        count = len(wrong) + len(surplus)
        raise UsageError(
            f"{source}: {count} tensors do not fit: {'; '.join(examples)}."
        )


@contextlib.contextmanager
def opened(path: str, field: str):
    """(manager, newest step) of the checkpoints of workdir `path`, for reading only.

    field: the flag or field that named the workdir, for messages.
    """
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
    """The part of a checkpoint that the tree `wanted` names, laid out as it says."""
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    return manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]


def load(path: str, layout: TrainState, field: str) -> tuple[TrainState, int]:
    """(the state in the newest checkpoint of workdir `path`, its step).

    The state is that of evaluation: opt_state is {}. layout: shapes and shardings;
    UsageError if the tensors differ. field: see opened.
    """
    names = ("params", "stats", "teacher", "memory")
    wanted = {name: getattr(layout, name) for name in names if getattr(layout, name)}
    with opened(path, field) as (manager, step):
        saved = manager.item_metadata(step)["state"].tree
        saved = {name: saved.get(name, {}) for name in wanted}
        compare(shapes_of(saved), shapes_of(wanted), f"{field}={path}")
        trees = read(manager, step, wanted)
    return layout.replace(**trees, opt_state={}, step=np.int32(step)), step


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
    """Arrays of a checkpoint, unchanged, in the host's memory.

    wanted: a part of the checkpoint's tree, with metadata as leaves. The result lacks
    empty dicts, which orbax would take for leaves.
    """
    wanted = without_empty(wanted)
    if not wanted:
        return {}
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    arguments = ocp.args.PyTreeRestore(
        wanted, restore_args=on_host, partial_restore=True
    )
    return manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]


def without_empty(tree):
    """The tree without dicts that contain no leaf."""
    if not isinstance(tree, dict):
        return tree
    kept = {k: without_empty(v) for k, v in tree.items()}
    return {k: v for k, v in kept.items() if v != {}}


def by_path(tree) -> dict:
    """{"a/b/c": leaf} of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {path_name(path): leaf for path, leaf in leaves}


def nested(leaves: dict) -> dict:
    """The tree of dicts with these leaves, the inverse of by_path."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        branch = tree
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return tree


def on_devices(array: np.ndarray, layout) -> jax.Array:
    """A host array, equal in every process, as a jax.Array laid out as `layout` says.

    Each device gets its own slice only, so the whole array is on no device.
    """
    return jax.make_array_from_callback(
        layout.shape, layout.sharding, lambda index: array[index]
    )
