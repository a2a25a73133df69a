"""Whole runs in this process: they learn, compile once, and continue exactly."""

import inspect
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mixjax.errors import Diverged, UsageError
from mixjax.run import ledger
from mixjax.state import ALL
from mixjax.training import build, loop, train_step
from tests.support import tiny


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 12 steps from start to end."""
    return tiny.run(tmp_path_factory.mktemp("unbroken"), tiny.config())


def test_the_loss_falls(tmp_path):
    settings = tiny.config(steps=80, log__every=20, schedule__base=5e-3)
    losses = tiny.metrics(tiny.run(tmp_path, settings))
    assert losses[80] < 0.75 * losses[1]


def test_a_run_leaves_what_it_says(unbroken):
    for name in ("config.json", "env.txt", "git.txt", "parameters.txt", "train.log"):
        assert (unbroken / name).stat().st_size > 0
    assert list(unbroken.glob("events.out.tfevents.*"))
    assert (unbroken / "figures" / "pictures_0000012.png").exists()
    assert (unbroken / "DONE").read_text() == "12\n"
    assert tiny.metrics(unbroken, "train/examples_seen")[12] == 12 * 16
    scores = tiny.metrics(unbroken, "knn/k=20/top1")
    assert list(scores) == [0, 6, 12]
    assert "knn every 6 steps" in (unbroken / "train.log").read_text()
    assert set(tiny.metrics(unbroken, "knn/examples").values()) == {50}


def test_the_step_compiles_once(tmp_path, monkeypatch):
    traced, compiled = [], []
    make = train_step.make_step

    def counted(*args):
        step = make(*args)

        def the_step(state, batch, resident):
            traced.append(1)
            return step(state, batch, resident)

        return the_step

    def listen(event, seconds, **what):
        if event.endswith("backend_compile_duration"):
            compiled.append(what.get("fun_name", ""))

    monkeypatch.setattr(train_step, "make_step", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        tiny.run(tmp_path, tiny.config())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traced) == 1
    assert sum("the_step" in name for name in compiled) == 1


@pytest.mark.parametrize("checks", [1, 2, 5, 9])
def test_an_interrupted_run_continues_bit_equal(tmp_path, unbroken, checks):
    """Stopped at different moments, also while evaluating, and with other threads."""
    tiny.run(tmp_path, tiny.config(), tiny.StopAt(checks))
    assert not (tmp_path / "DONE").exists()
    tiny.run(tmp_path, tiny.config(data__threads=2))
    tiny.assert_same_run(tmp_path, unbroken, 12)


def test_an_interrupted_folder_run_continues_bit_equal(tmp_path):
    """With files, crops on the host, and a broken one among them."""
    rng = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (20, 24 + i % 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i:02d}.png")
    (pictures / "07.png").write_bytes(b"not a picture")
    settings = tiny.config(**tiny.of_files(pictures, steps=7))
    whole = tiny.run(tmp_path / "whole", settings)
    parts = tiny.run(tmp_path / "parts", settings, tiny.StopAt(6))
    assert not (parts / "DONE").exists()
    tiny.run(parts, settings)
    tiny.assert_same_run(parts, whole, 7)
    assert "07.png" in (whole / "train.log").read_text()


def test_accumulation_is_the_same_training(tmp_path, unbroken):
    whole = tiny.metrics(unbroken)
    parts = tiny.metrics(tiny.run(tmp_path, tiny.config(accumulate=2)))
    assert whole.keys() == parts.keys()
    np.testing.assert_allclose(list(parts.values()), list(whole.values()), rtol=1e-5)


def test_sharded_parameters_are_the_same_training(tmp_path, unbroken):
    whole = tiny.metrics(unbroken)
    parts = tiny.metrics(tiny.run(tmp_path, tiny.config(mesh__fsdp=4)))
    np.testing.assert_allclose(list(parts.values()), list(whole.values()), rtol=1e-5)


def test_one_device_is_the_same_training(tmp_path, unbroken):
    """This process simulates eight; a process of its own has one."""
    done = subprocess.run(
        [sys.executable, "-m", "mixjax.main", *tiny.flags(), f"--workdir={tmp_path}"],
        cwd=tiny.ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "devices: 1 x cpu" in done.stdout
    assert "devices: 8 x cpu" in (unbroken / "train.log").read_text()
    many, one = tiny.metrics(unbroken), tiny.metrics(tmp_path)
    assert many.keys() == one.keys()
    np.testing.assert_allclose(list(one.values()), list(many.values()), rtol=1e-5)


def test_a_run_continues_on_another_layout(tmp_path, unbroken):
    tiny.run(tmp_path, tiny.config(), tiny.StopAt(5))
    tiny.run(tmp_path, tiny.config(mesh__fsdp=2))
    whole, parts = tiny.metrics(unbroken), tiny.metrics(tmp_path)
    np.testing.assert_allclose(list(parts.values()), list(whole.values()), rtol=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    """The sentence names step, tensors and checkpoint; nothing bad is kept."""
    settings = tiny.config(schedule__base=1e37, checkpoint__every_epochs=8.0)
    with pytest.raises(Diverged) as caught:
        tiny.run(tmp_path, settings)
    text = str(caught.value)
    assert text.startswith("step ") and "coder/" in text
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "DONE").exists()
    if kept:
        assert f"the checkpoint of step {kept[-1]}, the last good one" in text
        arrays = tiny.saved_arrays(tmp_path, kept[-1])
        assert all(np.isfinite(x).all() for x in arrays.values())
    else:
        assert "no checkpoint has been written" in text


def test_warm_start_takes_the_weights(tmp_path, unbroken):
    settings = tiny.config(init_from=str(unbroken), steps=1, schedule__base=0.0)
    folder = tiny.run(tmp_path, settings)
    old, new = tiny.saved_arrays(unbroken, 12), tiny.saved_arrays(folder, 1)
    weights = [name for name in new if name.startswith("['params']")]
    assert len(weights) > 20
    for name in weights:
        np.testing.assert_array_equal(new[name], old[name], err_msg=name)


def test_an_entry_says_how_far_the_run_was_that_it_began_from(tmp_path, unbroken):
    """Also when that run has gone on meanwhile, and after a resume."""
    begun = shutil.copytree(unbroken, tmp_path / "begun")
    shutil.rmtree(begun / "checkpoints" / "12")
    (begun / "DONE").unlink()
    after = tiny.config(init_from=str(begun), steps=4)
    tiny.run(tmp_path / "after", after, tiny.StopAt(2))
    shutil.copytree(unbroken, begun, dirs_exist_ok=True)
    folder = tiny.run(tmp_path / "after", after)
    entries = {entry["step"]: entry["origin"] for entry in ledger.read(folder)}
    assert entries.keys() >= {0, 4}
    for found in entries.values():
        assert (found["step"], found["complete"]) == (6, False)
    assert all(not entry["origin"] for entry in ledger.read(unbroken))
    for init_from, want in ((str(begun), (12, True)), ("", (None, None))):
        shutil.rmtree(folder / "checkpoints")  # as if none had been reached
        (folder / "DONE").unlink()
        tiny.run(folder, tiny.config(init_from=init_from, steps=4))
        found = ledger.read_origin(folder)
        assert (found.get("step"), found.get("complete")) == want


def test_a_batch_method_refuses_parts():
    with pytest.raises(UsageError, match="accumulate=2: .* only 1 is possible"):
        build.check_parts(ALL, 16, 8, 2)
    build.check_parts(ALL, 16, 8, 1)
    build.check_parts(1, 16, 8, 2)


def test_groups_stay_whole():
    build.check_parts(4, 64, 8, 2)
    with pytest.raises(UsageError, match="groups of 4 .*=2; take 64 or 128"):
        build.check_parts(4, 96, 8, 2)
    with pytest.raises(UsageError, match="take 32"):
        build.check_parts(4, 16, 8, 1)


def test_other_data_in_an_old_workdir_is_refused(tmp_path, unbroken):
    digits = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 1), np.uint8)
    for count in (64, 48):
        np.savez(tmp_path / "set.npz", train_image=digits[:count])
        settings = tiny.config(data__source=f"npz:{tmp_path}/set.npz", steps=6)
        if count == 64:
            tiny.run(tmp_path / "run", settings, tiny.StopAt(4))
    with pytest.raises(UsageError, match="has 48 training examples now but had 64"):
        tiny.run(tmp_path / "run", settings)


def test_train_fits_on_a_screen():
    assert len(inspect.getsource(loop.train).splitlines()) <= 60
