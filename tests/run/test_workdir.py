"""The folder of a run: its own, of one config, and saying what made it."""

import json
import subprocess
import tarfile
from pathlib import Path

import jax.numpy as jnp
import pytest

from mixjax.errors import UsageError
from mixjax.run import workdir
from mixjax.run.workdir import Workdir
from mixjax.runtime import atomic_write
from tests.support import tiny


def changed(old, new):
    """The sentence about two configs, or None if the change is harmless."""
    try:
        workdir.check_config(old, new, "here")
    except UsageError as error:
        return str(error)


def test_changes_are_listed_field_by_field():
    old = {"a": 1, "model": {"width": 8, "depth": 2}, "log": {"every": 5}}
    new = {"a": 1, "model": {"width": 9, "heads": 2}, "log": {"every": 6}}
    assert changed(old, new) == (
        "workdir here belongs to a run with another config: model.depth "
        "(2 -> 'absent'), model.heads ('absent' -> 2), model.width (8 -> 9); choose "
        "another --workdir or restore the old values."
    )


def test_of_many_changes_the_method_comes_first_and_the_last_are_counted():
    letters = "abcdefghij"
    old = dict.fromkeys(letters, 1) | {"method": {"name": "mae"}}
    new = dict.fromkeys(letters, 2) | {"method": {"name": "mimae"}}
    assert changed(old, new) == (
        "workdir here belongs to a run with another config: method.name ('mae' -> "
        "'mimae'), a (1 -> 2), b (1 -> 2), c (1 -> 2), d (1 -> 2), e (1 -> 2), and 5 "
        "more; choose another --workdir or restore the old values."
    )


@pytest.mark.parametrize(
    "field, harmless",
    [
        ("log.every", True),
        ("checkpoint.keep", True),
        ("mesh.fsdp", True),
        ("evals.knn.k", True),
        ("data.threads", True),
        ("accumulate", True),
        ("model.encoder.remat", True),
        ("model.decoder.scan", True),
        ("data.views", False),
        ("data.source", False),
        ("batch", False),
        ("seed", False),
        ("steps", False),
        ("model.precision", False),
        ("optim.b1", False),
        ("catalog.every", False),
    ],
)
def test_what_is_harmless(field, harmless):
    def nested(value):
        for word in reversed(field.split(".")):
            value = {word: value}
        return value

    assert (changed(nested(1), nested(2)) is None) == harmless


def test_files_are_replaced_in_one_move(tmp_path):
    file = tmp_path / "a.json"
    atomic_write.write(file, "old")
    atomic_write.write(file, "new")
    assert file.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_archive_knows_its_commit(tmp_path):
    root = Path(workdir.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    archive = [*git, "archive", "--output", str(tmp_path / "a.tar"), "HEAD"]
    subprocess.run([*archive, "mixjax/COMMIT", ".gitattributes"], check=True)
    with tarfile.open(tmp_path / "a.tar") as tar:
        written = tar.extractfile("mixjax/COMMIT").read()
    (tmp_path / "COMMIT").write_bytes(written)
    assert workdir.checkout_commit(tmp_path) == head.stdout
    assert workdir.checkout_commit(root / "mixjax") == head.stdout


def test_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    settings = tiny.config()
    with Workdir(str(tmp_path), settings) as folder:
        folder.record("8 x cpu", {"encoder": {"kernel": jnp.ones((3, 5))}})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model"]["encoder"]["image_size"] == [16, 16]
    assert "encoder/kernel" in (tmp_path / "parameters.txt").read_text()
    environment = (tmp_path / "env.txt").read_text()
    assert "8 x cpu" in environment and "\njax " in environment
    assert "secret" not in environment


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with Workdir(str(tmp_path), tiny.config()):
        with pytest.raises(UsageError, match="in use by another run"):
            Workdir(str(tmp_path), tiny.config())
    with Workdir(str(tmp_path), tiny.config()) as folder:
        assert not folder.finished
        folder.finish(3)
        assert folder.finished


def test_checkpoints_without_a_config_are_left_alone(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UsageError, match="has checkpoints but no config.json"):
        Workdir(str(tmp_path), tiny.config())
