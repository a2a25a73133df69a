"""The transfer suite: rates, what is missing, and going on where it stopped."""

import json

import pytest

from mixjax import transfer
from mixjax.errors import Diverged, Preempted
from mixjax.training import loop

RECIPE = """
from configs import common
from configs.common import ConfigDict
from tests.support import tiny

def get_config(arg=""):
    v = common.arguments(arg, set="digits", stage="search", rate=0.01)
    c = tiny.supervised("linear", "encoder=vit", steps=2, model__encoder__depth=1)
    c.evals.classify.protocol = f"transfer/{v.set}"
    c.evals.classify.every_epochs = 0.0
    c.schedule.base, c.schedule.rule = v.rate, "none"
    splits = {
        "search": ("train | part(.8, seed=0)", "train | rest(.8, seed=0)"),
        "final": ("train", "test"),
    }
    c.data.split, c.data.eval_split = splits[v.stage]
    if v.set == "gone":
        c.data.source = "npz:gone.npz"
    c.suite = ConfigDict()
    c.suite.sets, c.suite.rates = ("gone", "digits"), (0.0, 0.05)
    c.suite.metric = "top1"
    c.suite.archive = "ask its authors"
    return c
"""


@pytest.fixture
def suite(tmp_path):
    """The flags of a suite of two sets, one of which is not there."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    return [f"--config={tmp_path}/recipe.py", f"--workdir={tmp_path}/out"]


def test_the_suite_goes_on_where_it_stopped(suite, tmp_path, monkeypatch, capsys):
    """Stopped in the second of three runs; then only two are made."""
    begun, real = [], loop.train

    def counted(config, workdir, stop):
        begun.append(workdir.path.name)
        if len(begun) == 2:
            raise Preempted("SIGTERM")
        real(config, workdir, stop)

    monkeypatch.setattr(loop, "train", counted)
    assert transfer.run(suite) == 75
    assert begun == ["rate_0", "rate_0.05"]
    assert not (tmp_path / "out" / "digits.json").exists()
    assert transfer.run(suite) == 2  # a set is missing
    assert begun[2:] == ["rate_0.05", "final"]
    assert transfer.run([*suite, "--sets=digits"]) == 0 and len(begun) == 4
    out = capsys.readouterr().out
    assert "gone: not run: data.source=npz:gone.npz: there is no such file" in out
    assert "(ask its authors)" in out
    found = json.loads((tmp_path / "out" / "digits.json").read_text())
    scores = found["validation"]
    assert set(scores) == {"0", "0.05"}
    assert found["rate"] == float(max(scores, key=scores.get))
    assert found["metrics"]["transfer/digits/examples"] == 360
    last = out.strip().splitlines()
    assert last[-1].split()[:4] == ["mean", "of", "1", "sets"]
    assert float(last[-1].split()[-1]) == pytest.approx(found["value"], abs=0.01)


def test_a_rate_that_diverges_is_passed_over(suite, tmp_path, monkeypatch):
    real = loop.train

    def some(config, workdir, stop):
        if config.schedule.base:
            raise Diverged("the loss of step 1 is nan")
        real(config, workdir, stop)

    monkeypatch.setattr(loop, "train", some)
    assert transfer.run([*suite, "--sets=digits"]) == 0
    found = json.loads((tmp_path / "out" / "digits.json").read_text())
    assert found["rate"] == 0 and list(found["validation"]) == ["0"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sets=pest"], "--sets 'pest' does not exist"),
        (["--set=gone"], "flag 'set' does not exist; did you mean 'sets'"),
        (["--config=configs/mae_vitb.py"], "has no section suite"),
    ],
)
def test_what_is_wrong_is_said(suite, flags, message, capsys):
    assert transfer.run([*suite, *flags]) == 2
    assert message in capsys.readouterr().err
