"""The GPU benchmark at tiny sizes: what it measures, keeps, and gives up."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixjax.config import recipes

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))
import gpu  # noqa: E402
from support import gpu_runs, gpu_steps, record  # noqa: E402

from tests.conftest import QUICK  # noqa: E402

ROW = gpu_steps.Row("one", "all", "One", "mixjax", "mae_vits", 16, 1, 2)


# --- as a command --------------------------------------------------------------------


def run(tmp_path, *flags: str) -> tuple[list[str], dict]:
    """Runs the benchmark -> (the lines it printed, what it wrote)."""
    written = tmp_path / "found" / "gpu.json"
    paths = (f"--json={written}", f"--runs={tmp_path / 'runs'}")
    done = subprocess.run(
        [sys.executable, BENCH / "gpu.py", "--tiny", *paths, *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"XLA_FLAGS": QUICK, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert str(tmp_path) not in written.read_text()
    return done.stdout.splitlines(), json.loads(written.read_text())


def test_rows_and_profiles_are_kept_for_the_next_call(tmp_path):
    """A method and its mixture side by side; a profile; then nothing is left to do."""
    lines, found = run(tmp_path, "--only=none,unmix,profile")
    assert {"commit", "device", "versions", "command"} <= found.keys()
    assert "date" not in found
    base, mixed = found["rows"]
    assert min(base["img_per_sec"], mixed["ms"], base["ready_s"]) > 0
    assert mixed["time_ratio"] == pytest.approx(mixed["ms"] / base["ms"])
    assert 1.7 < mixed["work_ratio"] < 1.8  # seven passes to four
    assert isinstance(mixed["loss"], float)
    (profile,) = found["profiles"]
    operations = profile["operations"]
    shares = [entry["share"] for entry in operations]
    assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1
    assert any("conv" in entry["name"] for entry in operations)
    assert any("ResNet" in entry["where"] for entry in operations)
    assert 0 < profile["busy"] <= 1 and profile["ms_per_step"] > 0
    assert any("with Un-Mix" in x and " x its time" in x for x in lines)

    lines, again = run(tmp_path, "--only=none,unmix,moco,profile", "--minutes=.1")
    assert sum("(known)" in x for x in lines) == 2
    assert again["rows"][:2] == found["rows"]
    assert again["profiles"] == found["profiles"]
    assert "no time" in again["rows"][2]["reason"]


# --- contenders that go wrong --------------------------------------------------------

GOOD = """
import sys
print("TRACED {}", flush=True)
sys.stdin.readline()
print('READY {"work": 4e12, "peak": 1e13, "memory_gb": 2.0, "note": ""}', flush=True)
for _ in sys.stdin:
    print('TURN {"seconds": 0.5, "loss": 1.0}', flush=True)
"""
FULL = """
import sys
print("TRACED {}", flush=True)
sys.stdin.readline()
print("a trace\\nREASON RuntimeError: out of memory\\nlater", file=sys.stderr)
sys.exit(1)
"""
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
HANG = "import time; print('TRACED {}', flush=True); time.sleep(60)"
SLOW = GOOD.replace("sys.stdin:", "sys.stdin:\n    __import__('time').sleep(0.15)")
WORSE = GOOD.replace("for _ in sys.stdin", "for _ in [sys.stdin.readline()]")


def workers(**scripts: str) -> dict:
    """Processes that speak as contenders do."""
    found = {}
    for key, script in scripts.items():
        errors, pipe = tempfile.TemporaryFile("w+"), subprocess.PIPE
        command = [sys.executable, "-c", script]
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, text=True
        )
        found[key] = gpu.Worker(process, errors)
    return found


def clock(seconds: float):
    """() -> seconds left."""
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()


def test_one_that_fails_leaves_the_others_alone(monkeypatch):
    monkeypatch.setattr(gpu, "TURN", 0.1)
    alive = workers(good=GOOD, full=FULL, crash=CRASH, worse=WORSE)
    rows = [ROW._replace(key=k) for k in alive]
    times, facts, reasons = gpu.measure(rows, alive, clock(60), False)
    gpu.stop(alive.values())
    assert times == {"good": [0.5] * gpu.ROUNDS} and facts["good"]["loss"] == 1.0
    assert reasons["full"] == "RuntimeError: out of memory"
    assert reasons["crash"] == "ended by SIGKILL"
    assert reasons["worse"] == "ended with code 0"
    assert all(worker.process.poll() is not None for worker in alive.values())


def test_one_that_hangs_is_cut_off_in_time_for_the_others_turns(monkeypatch):
    monkeypatch.setattr(gpu, "TURN", 0.2)
    alive = workers(good=SLOW, hang=HANG)
    rows = [ROW._replace(key=k, seconds=1) for k in alive]
    times, _, reasons = gpu.measure(rows, alive, clock(4), False)
    gpu.stop(alive.values())
    assert len(times["good"]) == gpu.ROUNDS
    assert reasons == {"hang": gpu.CUT}


def test_what_does_not_fit_is_said():
    with pytest.raises(gpu.Failed, match="no time: about 2 s needed, 1 s left"):
        gpu.prepare(ROW, {}, lambda: 1.0)


@pytest.mark.parametrize("kind", ["vitmae", "resnet"])
def test_absent_packages_are_named(monkeypatch, kind):
    row = ROW._replace(kind=kind)
    monkeypatch.setattr(gpu_steps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(gpu.Failed, match=r"absent: torch, (transformers|torchvision)$"):
        gpu.prepare(row, {}, lambda: 1e3)
    assert gpu.start([row], Path("runs")) == {}


def test_a_reason_is_one_line_without_folders():
    error = OSError("no space in\n/home/someone/cache/x.bin for 3 images/s")
    text = gpu_steps.reason(error)
    assert text == "OSError: no space in x.bin for 3 images/s"


def test_figures_of_a_contender_of_other_work():
    """Per operation: 3 operations in 2 s against 4 in 2.4 s is 10 % less."""
    one, two = ROW, ROW._replace(key="two", kind="resnet", batch=8)
    facts = {"one": {"work": 4e12, "peak": 1e13}, "two": {"work": 3e12}}
    found = gpu.figures(two, {"one": [2.4, 2.4], "two": [2.0, 2.0]}, facts, one)
    assert found["img_per_sec"] == 4 and found["mfu"] == pytest.approx(0.15)
    assert found["first_over_this"] == pytest.approx(10 / 9)


def test_figures_are_not_lost_to_a_reason(tmp_path):
    options = SimpleNamespace(commit="c", tiny=True, fresh=False)
    book = gpu.Book(tmp_path / "a.json", tmp_path / "kept.json", options)
    book.put("rows", "one", {"ms": 1.0})
    book.put("rows", "one", {"reason": "no time"})
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == [{"ms": 1.0}]
    again = gpu.Book(tmp_path / "b.json", tmp_path / "kept.json", options)
    assert again.known("rows", "one")
    options.commit = "d"
    other = gpu.Book(tmp_path / "b.json", tmp_path / "kept.json", options)
    assert not other.known("rows", "one")


# --- profiles ------------------------------------------------------------------------


def span(name, tid, start, length, pid=1, **args):
    span = {"ph": "X", "pid": pid, "tid": tid, "name": name, "args": args}
    return span | {"ts": start, "dur": length}


def named(kind, name, pid, tid=None):
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def test_summary_of_a_gpu_counts_kernels_once():
    """Kernels of the streams, not the host's spans, nor XLA's own line of them."""
    trace = {
        "traceEvents": [
            named("process_name", "/device:GPU:0", 1),
            named("process_name", "/host:CPU", 2),
            named("thread_name", "Stream #7(Kernel)", 1, 7),
            named("thread_name", "Stream #8(Memcpy)", 1, 8),
            named("thread_name", "XLA Ops", 1, 9),
            span("loop_fusion_12", 7, 0, 300, hlo_op="loop_fusion.12"),
            span("loop_fusion_3", 7, 300, 100, hlo_op="loop_fusion.3"),
            span("nvjet_tst_64x8", 7, 500, 500, hlo_op="gemm"),
            span("MemcpyD2D", 8, 950, 100),
            span("loop_fusion.12", 9, 0, 300, hlo_op="loop_fusion.12"),
            span("python", 1, 0, 9000, pid=2, hlo_op="x"),
        ]
    }
    places = {"loop_fusion.12": "encoder/mlp"}
    found = gpu_steps.summary(trace, places, steps=2)
    assert found["busy"] == pytest.approx(0.95 / 1.05)
    assert found["ms_per_step"] == pytest.approx(1.05 / 2)
    first, second, third = found["operations"]
    assert (first["name"], first["calls"]) == ("nvjet_tst_64x8", 0.5)
    assert second == {
        "name": "loop_fusion",
        "share": pytest.approx(0.4),
        "ms": pytest.approx(0.2),
        "calls": 1.0,
        "where": "encoder/mlp",
    }
    assert third["name"] == "MemcpyD2D"


def test_summary_of_a_cpu_counts_what_lies_within_once():
    """The body of a loop is its own time, not the loop's."""
    trace = {
        "traceEvents": [
            named("process_name", "/host:CPU", 1),
            span("while.5", 1, 0, 100, hlo_op="while.5"),
            span("dot.2", 1, 10, 60, hlo_op="dot.2"),
            span("end: dot.2", 1, 70, 1),
            span("dot.3", 2, 20, 40, hlo_op="dot.3"),
        ]
    }
    found = gpu_steps.summary(trace, {}, steps=1)
    shares = {e["name"]: e["share"] for e in found["operations"]}
    assert shares == {"dot": pytest.approx(100 / 140), "while": pytest.approx(40 / 140)}
    assert found["busy"] == 1.0


def test_summary_of_nothing():
    assert gpu_steps.summary({"traceEvents": []}, {}, 3)["operations"] == []


# --- runs ----------------------------------------------------------------------------

LISTEN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""
DEAF = LISTEN.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")


@pytest.mark.parametrize(
    "script, seconds, code",
    [("pass", 60, 0), ("import sys; sys.exit(3)", 60, 3), (LISTEN, 3.5, 75)],
)
def test_a_run_is_asked_to_save_before_the_end(script, seconds, code):
    left = clock(seconds)
    assert gpu_runs.until([sys.executable, "-c", script], left, 1.5, {}) == code
    assert left() > 0


def test_a_run_that_does_not_listen_is_killed():
    command = [sys.executable, "-c", DEAF]
    assert gpu_runs.until(command, clock(3.0), 1.0, {}) == -9


def options_of(tmp_path, **changes) -> SimpleNamespace:
    found = {"runs": tmp_path / "runs", "json": tmp_path / "found" / "gpu.json"}
    found |= {"data": "some/where/cifar10.npz", "tiny": False, "commit": "abc"}
    return SimpleNamespace(**found | changes)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", gpu_runs.RUNS)
def test_the_commands_of_runs_parse(tmp_path, monkeypatch, name, tiny):
    monkeypatch.chdir(record.ROOT)
    options = options_of(tmp_path, tiny=tiny)
    flags = gpu_runs.flags(name, options, ["--config.model.precision=bfloat16"])
    config, _ = recipes.read(flags)
    assert config.data.on_device and config.data.source.endswith("cifar10.npz")
    assert config.epochs == 200 and config.evals.knn.every_epochs == 10
    assert config.model.precision == "bfloat16"
    mixtures = list(config.method.get("mixtures", {}))
    assert mixtures == ([name.partition("_")[2]] if "_" in name else [])
    assert not tiny or config.steps == 4


def pretend(codes: dict[str, int], done: list[str]):
    """Stands in for `until`: leaves what a run leaves, and ends with a code."""

    def until(command, left, grace, env):
        workdir = Path(command[-1].removeprefix("--workdir="))
        done.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        lines = [{"step": 0, "knn/k=200/top1": 30.0, "knn/bank": 5}]
        for step in range(5, 1001, 5):  # ten steps an epoch
            loss = {"train/loss": 1000.0 - step, "train/epoch": step / 10}
            lines.append({"step": step} | loss)
        lines.append({"step": 1000, "knn/k=200/top1": 80.0})
        text = "".join(json.dumps(x) + "\n" for x in lines)
        (workdir / "metrics.jsonl").write_text(text + '{"step": 10')
        (workdir / "config.json").write_text('{"seed": 4}')
        (workdir / "env.txt").write_text("x\ndevices: 1 x NVIDIA H100 as data 1\n")
        code = codes.get(workdir.name, 75)
        if code == 0:
            (workdir / "DONE").write_text("1000\n")
        return code

    return until


def test_runs_go_on_and_end_as_files(tmp_path, monkeypatch):
    options, done = options_of(tmp_path), []
    monkeypatch.setattr(gpu_runs, "until", pretend({"mae": 0, "moco_unmix": 3}, done))
    found = dict(gpu_runs.train(options, [], lambda: 500.0, {}))
    assert done == ["mae", "moco", "moco_unmix", "moco_mixmask"]
    assert found["mae"]["last"]["knn/k=200/top1"] == 80.0
    assert "no time: state saved" in found["moco"]["reason"]
    assert found["moco_unmix"]["reason"] == "ended with code 3"
    written = [p.name for p in options.json.parent.iterdir()]
    assert written == ["cifar10_mae.json"]
    whole = json.loads((options.json.parent / "cifar10_mae.json").read_text())
    assert whole["seeds"] == [4] and whole["epochs"] == 100 and whole["commit"] == "abc"
    assert whole["device"] == "1 x NVIDIA H100" and whole["steps"] == 1000
    assert "npz:cifar10.npz" in whole["command"] and "some" not in whole["command"]
    loss = whole["curves"]["train/loss"]
    assert loss[0] == [1, 992.5] and loss[-1] == [100, 2.5] and len(loss) == 50
    assert whole["curves"]["knn/k=200/top1"] == [[0.0, 30.0], [100.0, 80.0]]
    assert "knn/bank" not in whole["curves"]

    done.clear()  # what is complete is told again; the others have no time
    found = dict(gpu_runs.train(options, [], lambda: 5.0, {}))
    assert not done and "last" in found["mae"]
    assert all("no time: 5 s left" in found[n]["reason"] for n in found if n != "mae")
