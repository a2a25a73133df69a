"""A disk that fills up: a sentence, and the last checkpoint is there to go on from."""

import os
import subprocess
import sys

import pytest

from mixjax import errors
from tests.conftest import QUICK
from tests.support import tiny

FLAGS = tiny.flags(
    steps=60,
    log__every=5,
    evals__knn__every_epochs=0.0,
    evals__pictures__every_epochs=0.0,
    checkpoint__every_epochs=10.0,
    checkpoint__keep=2,
)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def run(workdir):
    command = [sys.executable, "-m", "mixjax.main", *FLAGS, f"--workdir={workdir}"]
    one_device = {**os.environ, "XLA_FLAGS": QUICK}
    return subprocess.run(
        command, cwd=tiny.ROOT, env=one_device, capture_output=True, text=True
    )


@pytest.mark.parametrize("left", [900_000, 1_100_000])
def test_a_full_disk_costs_one_interval(small_disk, left):
    """Full at the second checkpoint, or at the third."""
    filler, workdir = small_disk / "filler", small_disk / "run"
    filler.write_bytes(b"x" * (3 * 2**20 - left))
    first = run(workdir)
    assert first.returncode == errors.FAILED
    assert "Traceback" not in first.stderr, first.stderr
    assert first.stderr.count("\n") == 1, first.stderr
    said = first.stderr
    assert "o space left on" in said or "no space is left" in said
    assert "the same command continues" in said
    filler.unlink()
    again = run(workdir)
    assert again.returncode == errors.DONE, again.stderr
    assert "continuing from the checkpoint of step" in again.stdout
    assert tiny.metrics(workdir)[60] > 0
    steps = [*tiny.metrics(workdir)]
    assert steps == sorted(set(steps)), "each line once"
