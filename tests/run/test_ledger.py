"""Entries of the ledger: whole, small, readable again, and refused when broken."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.config import recipes
from mixjax.errors import UsageError
from mixjax.run import ledger
from tests.support import tiny


def entry(**changes):
    """An entry of the tiny recipe."""
    given = dict(
        name="knn",
        protocol="knn/k=20",
        metrics={"knn/k=20/top1": 91.25},
        config=tiny.config(),
        step=12,
        total_steps=12,
        effective_batch=16,
        examples_seen=192,
        seconds=7200.0,
        hardware="8 x cpu",
        commit="abc",
        origin={},
    )
    return ledger.make_entry(**given | changes)


def test_an_entry_says_what_it_takes_to_place_a_number():
    made = entry()
    assert made["k"] == 20 and made["hours"] == 2.0 and made["seeds"] == [0]
    assert made["complete"] and made["epochs"] is None  # 12 steps instead
    assert made["config"]["model"]["encoder"]["image_size"] == [16, 16]
    assert made.keys() == ledger.FIELDS.keys()
    whole = recipes.load(f"{tiny.ROOT}/configs/quickstart.py")
    half = entry(step=6, protocol="finetune", config=whole)
    assert not half["complete"] and half["epochs"] == 50 and half["k"] is None


def test_numbers_of_arrays_are_numbers_and_nan_is_null():
    values = {"a": np.float32(1.5), "b": jnp.ones(()), "c": float("nan"), "d": 3}
    assert entry(metrics=values)["metrics"] == {"a": 1.5, "b": 1.0, "c": None, "d": 3}


def test_the_hash_is_of_the_values_alone():
    config = tiny.config()
    backwards = dict(reversed(list(config.to_dict().items())))
    assert ledger.config_hash(config) == ledger.config_hash(backwards)
    assert ledger.config_hash(config) != ledger.config_hash(tiny.config(seed=1))


def test_what_is_written_is_read_again(tmp_path):
    run = tmp_path / "runs" / "one"
    path = ledger.write(run, entry())
    assert path == run / "eval" / "knn" / "12.json"
    ledger.write(run, entry(name="linear", protocol="linear"))
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "x.json").write_text(path.read_text())
    names = lambda folder: [e["name"] for e in ledger.read(folder)]
    assert names(run) == names(run.parent) == ["knn", "linear"]
    assert names(tmp_path) == ["knn", "knn", "linear"]
    assert names(tmp_path / "ledger") == ["knn"]
    assert ledger.read(run)[0] == entry()
    assert sorted(p.name for p in path.parent.iterdir()) == ["12.json"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('{"schema": 1', "cannot be read as JSON"),
        ("[1]", "holds a list, not an object"),
        ('{"schema": 9}', "has schema 9; only schema 1 is supported"),
        ('{"schema": 1, "name": "knn"}', "has no field 'protocol'"),
        (dict(step="12"), "step='12' has the wrong type"),
        (dict(metrics={"top1": "high"}), "metric top1='high' is not a number"),
        (
            dict(config={"seed": 0, "epochs": 1, "data": {}}),
            "no steps, batch, model, m",
        ),
        (dict(origin={"config": {}}), "its config has no seed, epochs"),
    ],
)
def test_broken_entries_are_one_sentence(tmp_path, text, sentence):
    if isinstance(text, dict):
        text = json.dumps(entry() | text)
    path = tmp_path / "eval" / "knn" / "1.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UsageError, match=sentence) as raised:
        ledger.read(tmp_path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="is not a folder of runs"):
        ledger.read(tmp_path / "none")


def test_origin_is_a_run_as_far_as_it_was(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ledger.plain(tiny.config())))
    (tmp_path / "git.txt").write_text("abc\ndiff --git a b\n")
    found = ledger.make_origin(tmp_path, 12)
    assert found["step"] == 12 and not found["complete"] and found["commit"] == "abc+"
    assert found["config_hash"] == ledger.config_hash(tiny.config())
    (tmp_path / "DONE").write_text("12\n")
    (tmp_path / "git.txt").write_text("abc\n")
    assert ledger.make_origin(tmp_path, 12)["complete"]
    assert not ledger.make_origin(tmp_path, 6)["complete"], (
        "its last checkpoint was cut"
    )
    assert (
        ledger.read_commit(tmp_path) == "abc"
        and ledger.read_commit(tmp_path / "x") == ""
    )


def test_seconds_count_each_step_once(tmp_path):
    assert ledger.training_seconds(tmp_path) == 0
    steps = [(100, 10.0), (200, 20.0), (150, 90.0), (250, 40.0)]
    lines = [json.dumps({"step": s, "perf/step_ms": ms}) for s, ms in steps]
    (tmp_path / "perf.jsonl").write_text("\n".join([*lines, '{"step": 3']))
    assert ledger.training_seconds(tmp_path) == pytest.approx(1.0 + 2.0 + 2.0)


def test_reading_needs_no_jax():
    code = "import sys, mixjax.run.ledger; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
