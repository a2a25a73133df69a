"""Runs as processes of their own, killed at any moment and started again.

MIXJAX_KILLS=10 python -m pytest tests/commands/test_kill.py kills more often.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mixjax import errors
from tests.conftest import QUICK
from tests.support import tiny

KILLS = int(os.environ.get("MIXJAX_KILLS", "3"))
STEPS = 10 * KILLS  # enough for each to find a run that is not yet complete
FLAGS = tiny.flags(
    steps=STEPS,
    log__every=7,
    evals__knn__every_epochs=50.0,
    checkpoint__every_epochs=300.0 / STEPS,  # three steps
    checkpoint__keep=2,
)


def start(workdir):
    """Begins a run, or continues it, on one device."""
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mixjax.main", *FLAGS, f"--workdir={workdir}"],
        cwd=tiny.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, word: str) -> str:
    """Reads what a run prints until a line has `word` in it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if word in line:
            return seen
    raise AssertionError(f"the run ended before it said {word!r}:\n{seen}")


def finish(process) -> str:
    try:
        text, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == errors.DONE, text
    return text


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder))
    return folder


def wait_for_a_save(process, workdir) -> None:
    """Returns when a checkpoint that was not there begins to be written."""
    folder = workdir / "checkpoints"
    known = set(folder.iterdir()) if folder.exists() else set()
    while process.poll() is None:
        if folder.exists() and set(folder.iterdir()) - known:
            return
        time.sleep(0.001)


def test_killed_at_random_moments(tmp_path, unbroken):
    """While starting, compiling and evaluating, and around a checkpoint's writing."""
    chance = random.Random(os.environ.get("MIXJAX_KILL_SEED", "mixjax"))
    for number in range(KILLS):
        with start(tmp_path) as process:
            wait_for(process, "plan:")
            if number % 3 != 1:
                wait_for_a_save(process, tmp_path)
            time.sleep(chance.uniform(0, 0.05) if number % 3 else chance.uniform(0, 2))
            process.kill()
    text = finish(start(tmp_path))
    assert "continuing from the checkpoint" in text or "nothing to do" in text
    tiny.assert_same_run(tmp_path, unbroken, STEPS)


@pytest.mark.parametrize("word", ["plan:", "knn/k=", "first step done"])
def test_asked_to_stop(tmp_path, unbroken, word):
    """During compilation, after an evaluation, while training and saving."""
    with start(tmp_path) as process:
        wait_for(process, word)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=300)
        assert process.returncode == errors.PREEMPTED, text
    assert text.splitlines()[-1] == "stopped by SIGTERM; the same command continues"
    assert "continuing from the checkpoint" in finish(start(tmp_path))
    tiny.assert_same_run(tmp_path, unbroken, STEPS)


def test_a_complete_run_does_nothing(unbroken):
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file()}
    text = finish(start(unbroken))
    assert text.strip().endswith("is complete; nothing to do")
    after = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file()}
    assert before == after


def test_a_workdir_has_one_run(tmp_path):
    with start(tmp_path) as first:
        wait_for(first, "plan:")
        text, _ = (second := start(tmp_path)).communicate(timeout=300)
        assert second.returncode == errors.USAGE
        assert text.strip().endswith("is in use by another run.")
        first.kill()
