"""Room: on the devices for a run's state, on the disk for its checkpoints."""

import contextlib
import shutil
import signal
from pathlib import Path

import jax

from mixjax.doctor.findings import Findings
from mixjax.profiling import device_memory
from mixjax.run.checkpoints import FOLDER, damage
from mixjax.run.workdir import Workdir

TRACING = 8.0  # seconds for the estimate of activations


def on_devices(found: Findings, config, run, pictures: int) -> None:
    """Bytes on each device. pictures: of data that is kept there."""
    layout = run.layout
    others = layout.stats, layout.teacher, layout.memory
    parts = {
        "parameters": device_memory.on_one_device(layout.params),
        "optimizer": device_memory.on_one_device(layout.opt_state),
        "teacher, statistics, memory": device_memory.on_one_device(others),
        "pictures": pictures,
    }
    batch = config.batch // config.accumulate
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), run.example
    )

    def estimate():
        with contextlib.suppress(TimeoutError), at_most(TRACING):
            return device_memory.kept(run.method.loss, layout, batch)

    kept = found.attempt(estimate)
    if kept is not None:
        parts["activations"] = kept.examples / run.mesh.size + kept.copies
    said = [f"{name} {device_memory.text(n)}" for name, n in parts.items() if n]
    found.fact(
        "device", f"{', '.join(said)}: {device_memory.text(sum(parts.values()))}"
    )
    note = "(activations are what the backward pass keeps, estimated before the "
    note += "compiler fuses)"
    if kept is None:
        note = f"(activations: not estimated within {TRACING:g} s)"
    found.fact("device", note)


@contextlib.contextmanager
def at_most(seconds: float):
    """TimeoutError in the main thread if what is inside takes longer."""

    def ring(number, frame):
        raise TimeoutError(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def workdir(found: Findings, config, path: str) -> None:
    """Whether the run may have its folder; leaves it as it was."""
    place = Path(path).expanduser().absolute()
    missing = [p for p in (place, *place.parents) if not p.exists()]
    opened = found.attempt(Workdir, path, config)
    if opened is not None:
        with opened:
            if opened.finished:
                found.problem(
                    f"--workdir={path} holds a complete run, to which the same command "
                    f"adds nothing; take another."
                )
        steps = whole_steps(place)
        at = f"continues at step {max(steps)}" if steps else "begins afresh"
        found.fact("workdir", f"{path}, {at}")
    with contextlib.suppress(OSError):  # such as a run that has begun meanwhile
        for folder in missing:
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()


def whole_steps(place: Path) -> list[int]:
    """The steps of the checkpoints in a workdir."""
    folder = place / FOLDER
    names = [p.name for p in folder.glob("*")] if folder.is_dir() else []
    return [int(n) for n in names if n.isdigit() and not damage(folder / n)]


def on_disk(found: Findings, config, run, path: str) -> None:
    """Checkpoints against the free space of the workdir's disk."""
    fields, clock = config.checkpoint, run.clock
    often = clock.steps(fields.keep_every_epochs)
    for_good = clock.total_steps // often if often else 0
    most = fields.keep + 1 + for_good  # one more while it is being written
    size = device_memory.total(run.layout)
    place = Path(path).expanduser().absolute()
    there = len(whole_steps(place))
    disk = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(disk).free
    need = max(most - there, 1) * size
    each, room = device_memory.text(size), device_memory.text(free)
    found.fact("checkpoint", f"{each} each, at most {most} at a time; {room} are free")
    if need > free:
        fits = free // size + there - 1 - for_good
        less = f", or checkpoint.keep={fits}" if fits >= 1 else ""
        found.problem(
            f"--workdir={path}: {most} checkpoints of {each} need "
            f"{device_memory.text(need)} more, but {room} are free on the disk of "
            f"{disk}; take another{less}."
        )
