"""The drill: it finds that nothing is lost, and would say so if something were."""

import json

import numpy as np
import pytest

from mixjax import drill, errors
from tests.conftest import QUICK
from tests.support import tiny


def flags(folder, **more):
    given = {"signals": 1, "seed": 3, "workdir": folder / "drill"} | more
    fields = tiny.FIELDS | {"steps": 24, "checkpoint.every_epochs": 25.0}
    return [
        *(f"--{k}={v}" for k, v in given.items()),
        *(f"--config.{k}={v}" for k, v in fields.items()),
    ]


def test_nothing_is_lost(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK)  # one device
    assert drill.run(flags(tmp_path)) == errors.DONE
    term, kill = capsys.readouterr().out.splitlines()[-2:]
    assert term.split()[:4] == ["SIGTERM", "1", "75", "0"]
    assert kill.split()[:3] == ["SIGKILL", "1", "-9"]
    assert term.endswith("equal to the last bit") and kill.endswith("to the last bit")
    assert drill.run(flags(tmp_path)) == errors.USAGE
    assert "is not empty; take another" in capsys.readouterr().err


def test_a_recipe_that_does_not_run_is_said(tmp_path, capsys):
    argv = [*flags(tmp_path), "--config.data.source=folder:/nowhere"]
    assert drill.run(argv) == errors.USAGE
    assert "ended with 2 and said: error: data.source=folder:/nowhere" in (
        capsys.readouterr().err
    )
    assert drill.run(["--signals=many"]) == errors.USAGE
    assert drill.run(["--signal=1"]) == errors.USAGE


def test_what_is_lost_is_counted(tmp_path):
    lines = [{"step": 7}, {"step": 9}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 1'
    (tmp_path / "metrics.jsonl").write_text(text)
    written = {"4": True, "8": False, "12.orbax-checkpoint-tmp": True}
    for step, whole in written.items():
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        if whole:
            (tmp_path / "checkpoints" / step / "commit_success.txt").touch()
    assert (drill.last_step(tmp_path), drill.saved_step(tmp_path)) == (9, 4)
    said = drill.row("SIGKILL", [drill.Blow(1.0, -9, 9, 4)] * 2, ["metrics.jsonl"])
    assert "10 in all,   5 at most   NOT EQUAL: metrics.jsonl" in said


def test_differences_are_seen(tmp_path, monkeypatch):
    one = {"a": np.float32([0.0, np.nan]), "b": np.int32(1)}
    found = {"one": one, "same": dict(one), "other": one | {"a": np.float32([-0.0, 1])}}
    found["less"] = {"a": one["a"]}
    monkeypatch.setattr(drill, "arrays", lambda workdir: found[workdir.name])
    for name in found:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(name[:4])
    (tmp_path / "same" / "metrics.jsonl").write_text("one")
    compare = lambda name: drill.differences(tmp_path / "one", tmp_path / name)
    assert compare("same") == []
    assert compare("other") == ["a", "metrics.jsonl"]
    assert compare("less") == ["b", "metrics.jsonl"]


@pytest.mark.parametrize(
    "code, lost, differ, good",
    [(75, 0, [], True), (75, 2, [], False), (75, 0, ["a"], False), (-15, 0, [], False)],
)
def test_what_counts_as_well(tmp_path, monkeypatch, code, lost, differ, good):
    blow = drill.Blow(1.0, code, 5 + lost, 5)
    monkeypatch.setattr(drill, "finish", lambda *_: 1.0)
    monkeypatch.setattr(drill, "batter", lambda *_: ([blow], differ))
    assert drill.drill(tiny.flags(), tmp_path / "new", 1, 0) == good
