"""What ends a run that no longer moves."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mixjax import errors
from mixjax.run.watchdog import Watch
from tests.support import tiny

USUAL = dict(step_factor=20.0, step_seconds=60.0, other_seconds=900.0, peer_seconds=0.0)


def test_how_long_a_step_may_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mixjax.run.watchdog.time.monotonic", lambda: now[0])
    watch = Watch(**USUAL)
    assert watch.limit() == 900
    for seconds in (100.0, 1.0, 2.0):  # the first is compiled
        with watch.step(1):
            now[0] += seconds
    assert watch.limit() == 60, "20 x the median of 2 is less than the least"
    for _ in range(9):
        with watch.step(2):
            now[0] += 5.0
    assert watch.limit() == 100
    assert Watch(**USUAL | {"step_factor": 0.0})._step_factor == 0


PROGRAM = """
import sys, time
from pathlib import Path
from mixjax.run import console, watchdog

folder = Path(sys.argv[1])
console.start(folder)
watch = watchdog.Watch(
    step_factor=2.0, step_seconds=1.0, other_seconds=2.0, peer_seconds={peer}
)
watch.start(folder, {number}, {count}, console.log_path(folder, {number}))


def the_work():
    {work}


the_work()
watch.close()
print("well")
"""
QUICK = "for _ in range(5):\n        with watch.step(1): time.sleep(0.01)\n    "


def watched(folder, work, number=0, count=1, peer=0.0) -> subprocess.Popen:
    """A process of its own that does `work` under a watch."""
    text = PROGRAM.format(work=work, number=number, count=count, peer=peer)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(folder)],
        cwd=tiny.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process, condition) -> None:
    """Waits until `condition` holds; if it never does, fails and kills the process."""
    end = time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)


def ended(process) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, text


@pytest.mark.parametrize(
    "work, said",
    [
        (QUICK + "with watch.step(6): time.sleep(99)", "step 6: no progress for "),
        (QUICK + "time.sleep(99)", "evaluating or saving: no progress for "),
        ("time.sleep(99)", "starting: no progress for "),
    ],
)
def test_work_that_is_stuck(tmp_path, work, said):
    code, text = ended(watched(tmp_path, work))
    assert code == errors.HUNG
    assert f"ended by the watchdog: {said}" in text
    log = (tmp_path / "train.log").read_text()
    assert said in log and "in the_work" in log and "Thread 0x" in log


def test_work_that_goes_on_is_left_alone(tmp_path):
    work = "for _ in range(25):\n        watch.alive(); time.sleep(0.15)"
    code, text = ended(watched(tmp_path, work, peer=9.0))
    assert (code, text) == (0, "well\n")


@pytest.mark.parametrize("number", [0, 1])
def test_a_peer_that_is_silent(tmp_path, number):
    code, text = ended(
        watched(tmp_path, "watch.alive(); time.sleep(1.5)\n    " * 9, number, 2, 2.0)
    )
    assert code == errors.HUNG
    assert f"process {1 - number} gave no sign of life for " in text
    assert (tmp_path / "heartbeats" / f"{number}.json").exists()


def test_a_process_that_was_stopped(tmp_path):
    """It is woken, so that it can say where it stood, and ends."""
    work = "while True:\n        watch.alive(); time.sleep(0.1)"
    process = watched(tmp_path, work, peer=2.0)
    until(process, (tmp_path / "heartbeats" / "0.json").exists)
    os.kill(process.pid, signal.SIGSTOP)
    code, text = ended(process)
    assert code == errors.HUNG
    assert "this process was blocked for 2 s" in text
    assert "in the_work" in (tmp_path / "train.log").read_text()


def test_a_process_that_cannot_even_end_itself(tmp_path):
    """Its interpreter is held by code that never lets go."""
    work = "import re; re.match('(a+)+$', 'a' * 64 + 'b')"
    code, _ = ended(watched(tmp_path, work, peer=2.0))
    assert code == -signal.SIGKILL
    assert "in the_work" in (tmp_path / "train.log").read_text()


def test_the_guard_leaves_with_its_process(tmp_path):
    process = watched(tmp_path, "time.sleep(1.5)", peer=5.0)
    guards = lambda: subprocess.run(
        ["pgrep", "-f", f"mixjax.run.watchdog_process {process.pid} "],
        capture_output=True,
        text=True,
    ).stdout.split()
    until(process, guards)
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while guards() and time.monotonic() < end:
        time.sleep(0.1)
    assert not guards()
