"""Memory of the devices for a run's state, and disk space for its checkpoints."""

import contextlib
import shutil
import signal
from pathlib import Path

import jax

from mixjax.doctor.findings import Findings
from mixjax.profiling import device_memory
from mixjax.run.checkpoints import FOLDER, damage
from mixjax.run.workdir import Workdir

TRACING = 8.0  # seconds that tracing a loss may take


def on_devices(findings: Findings, config, run, pictures: int) -> None:
    """Reports what a run keeps on each device; pictures: bytes of data kept there."""
    layout = run.layout
    others = layout.stats, layout.teacher, layout.memory
    parts = {
        "parameters": device_memory.on_one_device(layout.params),
        "optimizer": device_memory.on_one_device(layout.opt_state),
        "teacher, statistics, memory": device_memory.on_one_device(others),
        "pictures": pictures,
    }
    sizes = [f"{name} {device_memory.text(n)}" for name, n in parts.items() if n]
    total = device_memory.text(sum(parts.values()))
    findings.fact("device", f"{', '.join(sizes)}; {total} in total")
    # What a step adds depends on what the compiler fuses and recomputes: there is no
    # estimate without it.
    findings.fact("device", "(a step adds activations: --for=CHIPS compiles it to see)")
    findings.attempt(trace_loss, config, run)


def trace_loss(config, run) -> None:
    """Traces the loss, without its gradient, to see whether that raises an error."""
    size = config.batch // config.accumulate
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), run.example
    )
    with contextlib.suppress(TimeoutError), at_most(TRACING):
        key = jax.random.key(0)
        jax.eval_shape(run.method.loss, run.layout.params, run.layout, batch, key)


@contextlib.contextmanager
def at_most(seconds: float):
    """Raises TimeoutError in the main thread if the block takes longer."""

    def ring(number, frame):
        raise TimeoutError(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def workdir(findings: Findings, config, path: str) -> None:
    """Checks that the run may use its folder, which is left as it was."""
    place = Path(path).expanduser().absolute()
    missing = [p for p in (place, *place.parents) if not p.exists()]
    opened = findings.attempt(Workdir, path, config)
    if opened is not None:
        with opened:
            if opened.finished:
                findings.problem(
                    f"--workdir={path} holds a complete run, and the same command "
                    f"would add nothing to it; take another folder."
                )
        steps = whole_steps(place)
        at = f"continues at step {max(steps)}" if steps else "a new run"
        findings.fact("workdir", f"{path}, {at}")
    # rmdir fails, as it should, if a run has begun in the folder meanwhile.
    with contextlib.suppress(OSError):
        for folder in missing:
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()


def whole_steps(place: Path) -> list[int]:
    """The steps of the undamaged checkpoints in a workdir."""
    folder = place / FOLDER
    names = [p.name for p in folder.glob("*")] if folder.is_dir() else []
    return [int(n) for n in names if n.isdigit() and not damage(folder / n)]


def on_disk(findings: Findings, config, run, path: str) -> None:
    """Compares the size of the checkpoints with the free space on the disk."""
    fields, clock = config.checkpoint, run.clock
    interval = clock.steps(fields.keep_every_epochs)
    permanent = clock.total_steps // interval if interval else 0
    most = fields.keep + 1 + permanent  # one more while it is being written
    size = device_memory.total(run.layout)
    place = Path(path).expanduser().absolute()
    existing = len(whole_steps(place))
    disk = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(disk).free
    need = max(most - existing, 1) * size  # checkpoints that exist are replaced
    each, room = device_memory.text(size), device_memory.text(free)
    findings.fact("checkpoint", f"{each} each, at most {most} at a time; {room} free")
    if need > free:
        fits = free // size + existing - 1 - permanent
        less = f", or checkpoint.keep={fits}" if fits >= 1 else ""
        findings.problem(
            f"--workdir={path}: {most} checkpoints of {each} need "
            f"{device_memory.text(need)} more, but only {room} are free on the disk of "
            f"{disk}; take another folder{less}."
        )
