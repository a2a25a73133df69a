"""When evaluators are due, and which of them run."""

from types import SimpleNamespace

import pytest

from mixjax import evals
from mixjax.errors import Preempted, UsageError
from mixjax.optim.schedules import Clock

CLOCK = Clock(105, 10)
CONTEXT = dict.fromkeys(("sets", "method", "workdir", "mesh"))


def pictures(**changes):
    section = {"name": "pictures", "every_epochs": 2.0, "at_start": False, "count": 1}
    return {"looks": section | changes}


@pytest.fixture
def made(monkeypatch):
    """Evaluators of a config, without the data that a real one would want."""
    run = lambda state, step, writer: {}
    from mixjax.evals import pictures as file

    def make(*, count, sets, method, workdir):
        return run if count else None

    monkeypatch.setattr(file, "make", make)
    return lambda **changes: evals.make(pictures(**changes), clock=CLOCK, **CONTEXT)


@pytest.mark.parametrize(
    "every, at_start, due",
    [
        (2.0, True, [0, 20, 40, 60, 80, 100, 105]),
        (2.5, False, [25, 50, 75, 100, 105]),
        (20.0, False, [105]),
        (0.0, True, [0, 105]),
    ],
)
def test_due(made, every, at_start, due):
    (evaluator,) = made(every_epochs=every, at_start=at_start)
    assert evaluator.name == "looks"
    assert [step for step in range(106) if evaluator.due(step)] == due


@pytest.mark.parametrize(
    "every, said",
    [
        (2.0, "looks every 20 steps"),
        (0.1, "looks every step"),
        (0.0, "looks at the end"),
        (20.0, "looks at the end"),
    ],
)
def test_how_often_is_said(made, every, said):
    assert evals.describe(made(every_epochs=every), CLOCK) == said
    assert evals.describe([], CLOCK) == "none"


def test_what_cannot_be_evaluated_is_left_out(made):
    assert made(count=0) == []


@pytest.mark.parametrize("name", ["pictures", "attention", "activation"])
def test_no_drawings(name):
    """count=0 is none, where a data set of 0 examples would be all."""
    section = {"name": name, "every_epochs": 2.0, "at_start": False}
    given = dict(sets=None, network=None, method=None, mesh=None, workdir=None)

    def make(count):
        return evals.make({name: section | {"count": count}}, clock=CLOCK, **given)

    assert make(0) == []
    with pytest.raises(UsageError, match=rf"evals\.{name}\.count=-1 must be 1 or"):
        make(-1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "picture"}, r"evals\.looks\.name 'picture' .*'pictures'"),
        ({"counts": 1}, r"evals\.looks\.counts is not a field; .*'count'"),
    ],
)
def test_make_names_what_is_wrong(change, message):
    with pytest.raises(UsageError, match=message):
        evals.make(pictures(**change), clock=CLOCK, **CONTEXT)


@pytest.mark.parametrize("field", ["name", "every_epochs", "at_start", "count"])
def test_make_names_what_is_missing(field):
    config = pictures()
    del config["looks"][field]
    with pytest.raises(UsageError, match=rf"evals\.looks\.{field} is missing"):
        evals.make(config, clock=CLOCK, **CONTEXT)


class Record:
    """Takes what evaluators write."""

    def __init__(self):
        self.lines, self.drained, self.writer = [], 0, self

    def drain(self):
        self.drained += 1

    def metrics(self, step, values):
        self.lines.append((step, values))


def evaluator(name, answer, steps=(3,)):
    def run(state, step, writer):
        if answer is Preempted:
            raise Preempted
        return {name: state.number} if answer else {}

    return evals.Evaluator(name, 0, lambda step: step in steps, run, False)


def test_run_due_runs_what_is_due_and_not_done(said):
    record, done, kept = Record(), ["b"], []
    state = SimpleNamespace(number=0.5)
    found = [evaluator(name, name != "d") for name in "abcd"]
    found.append(evaluator("later", True, steps=(4,)))
    found[2] = found[2]._replace(kept=True)
    evals.run_due(found, state, 3, done, record, lambda *what: kept.append(what))
    assert kept == [(3, {"c": 0.5})]
    assert done == ["b", "a", "c", "d"]
    assert record.lines == [(3, {"a": 0.5}), (3, {"c": 0.5})]
    assert said == ["step 3  a 0.5", "step 3  c 0.5"]
    evals.run_due(found, state, 3, done, record, None)
    assert len(record.lines) == 2 and record.drained == 1


def test_run_due_stops_at_a_signal_and_says_how_far_it_came():
    record, done = Record(), []
    found = [evaluator("a", True), evaluator("b", Preempted), evaluator("c", True)]
    evals.run_due(found, SimpleNamespace(number=1), 3, done, record, None)
    assert done == ["a"] and record.lines == [(3, {"a": 1})]
