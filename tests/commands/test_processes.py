"""Several processes of one run: found, equal to one, and leaving together.

They are real processes that meet over this machine's loopback, on one device each.
"""

import os
import signal
import time

import jax
import numpy as np
import pytest

from mixjax import drill, errors
from mixjax.errors import UsageError
from mixjax.runtime import processes
from mixjax.sharding import meshes
from tests.support import several_processes, tiny

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
GIVEN = {"coordinator": "10.0.0.1:99", "processes": "4", "process": "3"}


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    several_processes.stop()


@pytest.mark.parametrize(
    "flags, environment, how",
    [
        ({}, {}, "alone"),
        (GIVEN, SLURM, "flags"),
        ({"processes": "1"}, SLURM, "alone"),
        ({}, SLURM, "Slurm"),
        ({}, SLURM | {"SLURM_NTASKS": "1"}, "alone"),
        ({}, {k: v for k, v in SLURM.items() if "STEP" not in k}, "alone"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "1"}, "alone"),
    ],
)
def test_how_they_find_each_other(flags, environment, how):
    found = processes.plan(flags, environment)
    assert found.launcher == how
    assert bool(found.arguments) == (how == "flags")


def test_a_machine_with_chips_asks_for_its_neighbours(monkeypatch):
    monkeypatch.setattr(processes, "has_tpu", lambda: True)
    assert processes.plan({}, {}).launcher == "TPU"
    assert processes.plan({"processes": "1"}, {}).launcher == "alone"


def test_flags_become_arguments():
    assert processes.plan(GIVEN, {}).arguments == {
        "coordinator_address": "10.0.0.1:99",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"process": None}, "--process is missing: .*--process=0 to N-1"),
        ({"coordinator": None}, "--coordinator is missing"),
        ({"coordinator": "10.0.0.1"}, "--coordinator=10.0.0.1 is not HOST:PORT"),
        ({"process": "4"}, "--process=4 must be below --processes=4; .* from 0"),
        ({"processes": "four"}, "--processes=four is not a number"),
        ({"process": "-1"}, "--process=-1 is not a number"),
    ],
)
def test_flags_that_do_not_fit(change, message):
    with pytest.raises(UsageError, match=message):
        processes.plan(GIVEN | change, {})


def test_as_many_devices_as_asked_for(monkeypatch):
    processes.check_devices(8, "alone")
    processes.check_devices(None, "alone")
    simulated = "16 devices .* sees 8 .cpu. in 1 process; .*device_count=16"
    with pytest.raises(UsageError, match=simulated):
        processes.check_devices(16, "alone")
    with pytest.raises(UsageError, match="--devices=many is not a number"):
        processes.join({"devices": "many"}, 10)


def test_the_line_to_use(monkeypatch):
    line = processes.line_to_use
    assert "--worker=all" in line(16, "TPU", "tpu")
    assert "--process=0 to N-1" in line(16, "flags", "cpu")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    said = line(16, "alone", "gpu")
    assert "srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 " in said


def test_what_a_job_was_given():
    job = {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "2"}
    assert processes.slurm_gpus(job) == 16
    assert processes.slurm_gpus(job | {"JAX_PLATFORMS": "cpu"}) is None
    assert processes.slurm_gpus({}) is None


def test_the_watchdog_comes_before_jax(monkeypatch):
    """Which may have heard nothing for half of its time when a process dies."""
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: given.update(how))
    monkeypatch.setattr(processes, "_joined", False)
    processes.join(GIVEN, SILENT)
    hears = SILENT * (1 + 1 / 6) + 1  # it looks six times in that time
    assert given["heartbeat_timeout_seconds"] / 2 > hears


def test_errors_that_come_of_others(monkeypatch):
    """What ran out of memory is our own error, and would come again."""
    gloo = RuntimeError("FAILED_PRECONDITION: Gloo all-reduce failed: closed by peer")
    assert not processes.of_a_peer(gloo)
    monkeypatch.setattr(processes, "_joined", True)
    assert processes.of_a_peer(gloo)
    memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
    assert not processes.of_a_peer(memory)


def test_rows_of_devices_that_take_turns(monkeypatch):
    """Devices of two processes, one after the other on the mesh: odd rows are ours."""
    mesh = meshes.make(fsdp=1)

    def places(shape):
        devices = jax.devices()[1::2]
        return {d: (slice(2 * d.id, 2 * d.id + 2),) for d in devices}

    class Sharding:
        addressable_devices_indices_map = staticmethod(places)

    monkeypatch.setattr(meshes, "batched", lambda mesh: Sharding)
    rows = meshes.rows_here(mesh, 16)
    np.testing.assert_array_equal(rows, [2, 3, 6, 7, 10, 11, 14, 15])


# --- real processes ------------------------------------------------------------------

STEPS = 30
SILENT = 10.0  # seconds; the least that jax takes
FLAGS = tiny.flags(
    steps=STEPS,
    log__every=3,
    evals__knn__every_epochs=50.0,
    evals__pictures__every_epochs=0.0,
    checkpoint__every_epochs=20.0,
    watchdog__peer_seconds=SILENT,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Unbroken runs on one and on two processes: {count: workdir}."""
    folder = tmp_path_factory.mktemp("runs")
    return {n: several_processes.run(folder / f"of{n}", FLAGS, n) for n in (1, 2)}


MOCO = """
import sys

sys.path.insert(0, {root!r})
from tests.support import tiny


def get_config(_):
    changes = {changes!r}
    return tiny.siamese("moco", "both", **changes)
"""


def test_moco_with_mixtures_trains_as_one(tmp_path):
    """Its queue, teacher, batch statistics and partners see the whole batch, too."""
    changes = {"steps": 20, "log__every": 2, "evals__knn__every_epochs": 1e9}
    changes["schedule__base"] = 1e-3  # at 0.06 rounding grows to 1e-5 in 40 steps
    recipe = tmp_path / "moco.py"
    recipe.write_text(MOCO.format(root=str(tiny.ROOT), changes=changes))
    flags = [f"--config={recipe}"]
    one, two = (several_processes.run(tmp_path / f"of{n}", flags, n) for n in (1, 2))
    assert_near(one, two, ("train/loss", "train/loss_unmix", "train/loss_mixmask"))


def assert_near(one, two, names=("train/loss", "train/grad_norm")):
    """The same losses to 1e-5 at every step that was written."""
    for name in names:
        first, second = tiny.metrics(one, name), tiny.metrics(two, name)
        assert first.keys() == second.keys() and len(first) == 11
        for step, value in first.items():
            assert second[step] == pytest.approx(value, rel=1e-5, abs=1e-5), step


def test_two_processes_train_as_one(runs):
    assert_near(runs[1], runs[2])
    scores = [tiny.metrics(runs[n], "knn/k=20/top1") for n in (1, 2)]
    assert scores[0] == scores[1] and list(scores[0]) == [0, 15, 30]


def test_the_first_writes_what_is_common(runs):
    folder = runs[2]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    steps = [*tiny.metrics(folder)]
    assert steps == sorted(set(steps)), "each line once"
    assert "plan:" in (folder / "train.1.log").read_text()
    said = several_processes.output(folder, 1).read_text()
    assert "plan:" not in said and "Traceback" not in said
    beats = sorted(p.name for p in (folder / "heartbeats").iterdir())
    assert beats == ["0.json", "1.json"]


def until(condition, what: str, seconds: float = 240):
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def at_step(workdir, step: int):
    """Waits until a checkpoint of at least `step` steps is there."""

    until(lambda: drill.saved_step(workdir) >= step, f"step {step}")


@pytest.mark.parametrize("victim, again", [(1, 2), (0, 1)])
def test_when_one_is_killed(tmp_path, runs, victim, again):
    """The others leave; as many, or another number, continue to the same end."""
    workdir = tmp_path / "run"
    started = several_processes.start(workdir, FLAGS, 2)
    at_step(workdir, 5)
    started[victim].kill()
    killed = time.monotonic()
    codes = several_processes.finish(started, 60)
    assert time.monotonic() - killed < SILENT + 20
    # Without the first process jax itself ends the others.
    assert codes[1 - victim] in ((errors.HUNG,) if victim else (76, -signal.SIGABRT))
    several_processes.run(workdir, FLAGS, again)
    if again == 2:
        tiny.assert_same_run(workdir, runs[2], STEPS)
    assert_near(runs[1], workdir)


def trained(workdir, steps: int):
    """Waits until so many steps are in metrics.jsonl."""
    file = workdir / "metrics.jsonl"
    reached = lambda: file.exists() and [*tiny.metrics(workdir)][-1:] >= [steps]
    until(reached, f"step {steps}")


LONG = [*FLAGS, f"--config.steps={100 * STEPS}"]


def test_a_signal_while_they_start(tmp_path, runs):
    """Kept by the one that got it until all have compiled; then they continue."""
    workdir = tmp_path / "run"
    started = several_processes.start(workdir, FLAGS, 2)
    log = workdir / "train.1.log"
    until(lambda: log.exists() and "plan:" in log.read_text(), "the plan")
    os.kill(started[1].pid, signal.SIGTERM)
    assert several_processes.finish(started, 120) == [errors.PREEMPTED] * 2
    assert not (workdir / "DONE").exists()
    several_processes.run(workdir, FLAGS, 2)
    tiny.assert_same_run(workdir, runs[2], STEPS)


def test_a_signal_while_they_train(tmp_path):
    """All leave at the same step, which is saved, whichever signal it was."""
    workdir = tmp_path / "run"
    started = several_processes.start(workdir, LONG, 2)
    trained(workdir, 21)
    os.kill(started[1].pid, signal.SIGUSR1)
    assert several_processes.finish(started, 120) == [errors.PREEMPTED] * 2
    written = [*tiny.metrics(workdir)][-1]
    assert written <= drill.saved_step(workdir) < written + 3, (
        "metrics are written every 3 steps"
    )


def test_when_one_stands_still(tmp_path):
    """The watchdog of the other ends the run, and its log says where it stood."""
    workdir = tmp_path / "run"
    started = several_processes.start(workdir, LONG, 2)
    trained(workdir, 21)
    os.kill(started[1].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        codes = several_processes.finish(started, 60)
    finally:
        assert time.monotonic() - stopped < 2 * SILENT + 20
    said = (workdir / "train.log").read_text() + (workdir / "train.1.log").read_text()
    assert errors.HUNG in codes, codes
    assert "ended by the watchdog" in said and "in train" in said
