"""The log of a run: exact lines, events that TensorBoard reads, clear endings."""

import io
import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixjax.errors import Diverged
from mixjax.run.recorder import Plan, Recorder, clock
from mixjax.run.summary import summary

NEW = {"window": [], "metrics_bytes": 0, "evaluated": []}
PLAN = Plan(
    total_steps=10,
    batch=4,
    examples=22,
    steps_per_epoch=5,
    tensor_names=["encoder/a", "encoder/b"],
    step_flops=None,
    peak_flops=None,
)


def recorder(folder, notes=NEW, step=0, plan=PLAN, **fields):
    return Recorder(folder, plan, notes, step, **{"every": 4, "seconds": 0} | fields)


def metrics(loss, squares=(9.0, 16.0)):
    """What a step returns, on the devices."""
    return {
        "loss": jnp.float32(loss),
        "lr": jnp.float32(loss / 10),
        "grad_squares": jnp.array(squares),
    }


def lines(folder, name="metrics.jsonl"):
    return [json.loads(x) for x in (folder / name).read_text().splitlines()]


def test_means_over_a_window(tmp_path):
    record = recorder(tmp_path)
    for step in range(1, 11):
        record.step(step, metrics(step))
    record.drain()
    record.close()
    found = lines(tmp_path)
    assert [x["step"] for x in found] == [1, 4, 8, 10]
    assert [x["train/loss"] for x in found] == [1, 3, 6.5, 9.5]
    assert [x["train/grad_norm"] for x in found] == [5, 5, 5, 5]
    assert [x["train/examples_seen"] for x in found] == [4, 16, 32, 40]
    assert [x["train/epoch"] for x in found] == [0.2, 0.8, 1.6, 2.0]
    np.testing.assert_allclose([x["train/lr"] for x in found], [0.1, 0.4, 0.8, 1.0])


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_window_cut_in_two_is_written_alike(tmp_path, cut):
    """What the first half wrote beyond its checkpoint is forgotten."""
    record = recorder(tmp_path)
    for step in range(1, cut + 1):
        record.step(step, metrics(step))
    notes = json.loads(json.dumps(record.notes([])))
    for step in range(cut + 1, min(cut + 5, 11)):
        record.step(step, metrics(100 * step))
    record.drain()
    record.close()
    record = recorder(tmp_path, notes, cut)
    for step in range(cut + 1, 11):
        record.step(step, metrics(step))
    record.drain()
    record.close()
    assert [x["train/loss"] for x in lines(tmp_path)] == [1, 3, 6.5, 9.5]


def test_notes_stay_as_they_were(tmp_path):
    """They are written to disk while the run goes on."""
    record = recorder(tmp_path)
    record.step(1, metrics(1))
    record.step(2, metrics(2))
    notes = record.notes(["knn"])
    before = json.dumps(notes)
    record.step(3, metrics(3))
    record.drain()
    record.close()
    assert json.dumps(notes) == before
    assert [step for step, _ in notes["window"]] == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_ends_the_run(tmp_path, bad):
    record = recorder(tmp_path)
    record.watch(unreadable=set(), last_good=lambda: 7)
    record.step(1, metrics(1))
    record.step(2, metrics(2, (1.0, bad)))
    with pytest.raises(Diverged) as caught:
        record.notes([])
    record.close()
    assert str(caught.value) == (
        "step 2: loss 2.0; the gradients of encoder/b are not finite; "
        "the checkpoint of step 7, the last good one, is kept."
    )


def test_a_loss_that_is_not_finite_before_any_checkpoint(tmp_path):
    record = recorder(tmp_path)
    with pytest.raises(Diverged) as caught:
        record.step(1, metrics(math.nan))
    record.close()
    text = str(caught.value)
    assert "step 1: loss nan; all gradients are finite; no checkpoint" in text


def test_speed_and_progress(tmp_path, said):
    record = recorder(tmp_path, plan=PLAN._replace(step_flops=1e9, peak_flops=1e12))
    record.watch(unreadable={"a.jpg", "b.jpg"}, last_good=lambda: None)
    for step in (1, 2, 3):
        with record.waiting():
            pass
        record.step(step, metrics(step))
    record.close()
    perf = lines(tmp_path, "perf.jsonl")[-1]
    assert perf["step"] == 3 and perf["data/unreadable"] == 2
    seconds = perf["perf/step_ms"] / 1e3
    assert perf["perf/img_per_sec"] == pytest.approx(4 / seconds)
    assert perf["perf/img_per_sec_per_device"] == pytest.approx(4 / seconds / 8)
    assert perf["perf/mfu"] == pytest.approx(1e9 / seconds / 1e12)
    assert perf["perf/eta_s"] == pytest.approx(7 * seconds)
    assert 0 <= perf["perf/data_wait_frac"] <= 1
    assert any("step 3/10" in line and "2 unreadable" in line for line in said)


def test_an_evaluation_is_no_time_of_steps(tmp_path, said):
    """Nor does it make the next step, just started, a line of its own."""
    record = recorder(tmp_path, seconds=0.5)
    record.step(1, metrics(1))
    time.sleep(0.6)
    for step in range(2, 11):
        with record.waiting():
            pass
        record.step(step, metrics(step))
    record.close()
    assert [x["step"] for x in lines(tmp_path, "perf.jsonl")] == [10]
    assert not any("step 2/10" in line for line in said)


def test_the_last_line_counts_steps_to_their_end(tmp_path):
    record = recorder(tmp_path, seconds=60)
    for step in range(1, 10):
        record.step(step, metrics(step))
    fetch = record._fetch_oldest
    record._fetch_oldest = lambda: (time.sleep(0.05), fetch())
    record.step(10, metrics(10))
    record.close()
    (perf,) = lines(tmp_path, "perf.jsonl")
    assert perf["step"] == 10 and perf["perf/step_ms"] >= 150 / 9


def test_tensorboard_reads_the_events(tmp_path):
    record = recorder(tmp_path)
    for step in (1, 2, 3, 4):
        record.step(step, metrics(step))
    record.drain()
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(buffer, "PNG")
    record.writer.image(4, "pictures", buffer.getvalue(), (3, 5))
    record.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("train/loss")
    assert [(x.step, x.value) for x in scalars] == [(1, 1.0), (4, 3.0)]
    (image,) = events.Images("pictures")
    assert (image.step, image.height, image.width) == (4, 3, 5)
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (5, 3)


def test_summary_of_a_run(tmp_path):
    rows = [
        {"step": 0, "knn/k=20/top1": 25.0},
        {"step": 1, "train/loss": 2.0},
        {"step": 8, "train/loss": 0.5},
        {"step": 8, "knn/k=20/top1": 75.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "figures").mkdir()
    for step in (4, 8):
        (tmp_path / "figures" / f"pictures_{step:07d}.png").write_bytes(b"")
    assert summary(tmp_path) == [
        "train/loss  2 (step 1) -> 0.5 (step 8)",
        "knn/k=20/top1  25 (untrained) -> 75 (step 8)",
        f"picture  {tmp_path}/figures/pictures_0000008.png",
        f"workdir  {tmp_path}",
    ]


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3599, 90061)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "25:01:01",
    ]
