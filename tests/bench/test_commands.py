"""The benchmarks run, and their tables have a line for every contender."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mixjax import errors
from mixjax.config import recipes
from mixjax.data.views import parse
from tests.conftest import QUICK

BENCH = Path(__file__).parents[2] / "bench"


def run(tmp_path, script: str, *flags: str) -> tuple[list[str], dict]:
    """Runs a benchmark -> (the lines it printed, what it wrote to --json)."""
    written = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, BENCH / script, *flags, f"--json={written}"],
        capture_output=True,
        text=True,
        cwd=BENCH.parent,
        env=os.environ | {"XLA_FLAGS": QUICK},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines(), json.loads(written.read_text())


def figures(lines: list[str], title: str, column: int) -> list[float]:
    """The numbers from `column` on of the only line that begins with `title`."""
    (line,) = [x for x in lines if x.startswith(title)]
    return [float(n) for n in re.findall(r"(?<= )[\d.]+(?= |$)", line[column:])]


def check_record(found: dict, rows: int) -> None:
    assert {"command", "date", "commit", "host", "versions"} <= found.keys()
    assert found["host"]["cores"] >= 1 and found["versions"]["jax"]
    assert len(found["rows"]) == rows


def test_step(tmp_path):
    """mixjax and PyTorch eager train the smallest MAE one step each."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is absent")
    size = ("--model=Ti", "--layers=1", "--batch=1", "--rounds=1")
    lines, found = run(tmp_path, "step.py", *size, "--only=mixjax,eager")
    check_record(found, rows=2)
    for title in ("mixjax  ", "PyTorch eager, default AdamW"):
        assert min(figures(lines, title, 38)[:2]) > 0
    assert all(row["img_per_sec"] > 0 for row in found["rows"])


def test_mixtures(tmp_path):
    size = ("--width=4", "--batch=8", "--rounds=1", "--only=MoCo, unmix")
    lines, found = run(tmp_path, "mixtures.py", *size)
    check_record(found, rows=1)
    assert figures(lines, "MoCo, unmix", 28)[1:] == [1.0, 1.0, 1.75]


def test_methods(tmp_path):
    size = ("--layers=1", "--batch=4", "--rounds=1", "--only=MAE;MixedAE")
    lines, found = run(tmp_path, "methods.py", *size)
    check_record(found, rows=2)
    assert figures(lines, "MAE  ", 20)[1:] == [1.0, 1.0]
    assert min(figures(lines, "MixedAE  ", 20)) > 0


def test_input(tmp_path):
    """Every form of the host's work sees to a few pictures."""
    size = ("--files=16", "--images=16", "--batch=8", "--rounds=1", "--threads=2")
    lines, found = run(tmp_path, "input.py", *size, "--no-tfdata")
    check_record(found, rows=7)
    work = ("decode and crop, a loop", "decode and crop, 2 threads", "pipeline, 2 ")
    titles = [f"{'':17}decode, a loop"]
    titles += [
        f"{f:17}{w}" for f in ("antialias=False", "antialias=True") for w in work
    ]
    for title in titles:
        img_per_sec, per_core, cpu_ms = figures(lines, title, 54)
        assert min(img_per_sec, per_core, cpu_ms) > 0
    assert all(share["cpu"] > 0 for share in found["ratios"])
    assert any("tf.data" in x and "not run" in x for x in lines)


def test_augment(tmp_path):
    """The device and both forms of Pillow augment a few pictures."""
    size = ("--batch=8", "--images=16", "--rounds=1", "--threads=2")
    lines, found = run(tmp_path, "augment.py", *size)
    check_record(found, rows=3)
    for title in ("mixjax, batch 8", "Pillow, a loop", "Pillow, 2 threads"):
        assert min(figures(lines, title, 40)) > 0
    assert all(times > 0 for times in found["ratios"].values())


def test_compile(tmp_path):
    """A small model starts twice; the second time finds the first one's cache."""
    tiny = {"encoder.width": 8, "encoder.heads": 1, "encoder.depth": 2}
    tiny |= {"decoder.width": 8, "decoder.heads": 1, "decoder.depth": 1}
    fields = [f"--config.model.{k}={v}" for k, v in tiny.items()]
    size = ("--only=scan", "--rounds=1", "--config.batch=16")
    lines, found = run(tmp_path, "time_to_first_step.py", *fields, *size)
    check_record(found, rows=2)
    for title in ("scan, cold cache", "scan, warm cache"):
        first_step, trace, lower, compile_, _ = figures(lines, title, 22)
        assert min(first_step, trace, compile_) > 0 and lower >= 0


def test_run(tmp_path):
    """A run of two steps: the ends of its metrics, and its picture."""
    from tests.support import tiny

    lines, found = run(tmp_path, "whole_run.py", *tiny.flags(steps=2))
    metrics = {(row["metric"], row["step"]): row["value"] for row in found["rows"]}
    assert metrics["train/examples_seen", 2] == 32
    assert {("knn/k=20/top1", 0), ("train/loss", 1), ("train/loss", 2)} <= set(metrics)
    assert found["seconds"] > 0 and " s, " in lines[-1]
    assert (tmp_path / "found.png").exists()


def test_double_precision_is_everywhere():
    """In the state and the loss of a cell of the matrix, before and after a step."""
    code = """
import sys
sys.argv = ["matrix.py"]
import matrix
import jax
import jax.numpy as jnp
step, state, _ = matrix.make(matrix.recipe("MoCo", "unmix"))
index = jax.ShapeDtypeStruct((matrix.BATCH,), jnp.int32)
images = jax.ShapeDtypeStruct((matrix.BATCH, 32, 32, 3), jnp.uint8)
batch = {"index": index, "label": index}
found = jax.tree.leaves(jax.eval_shape(step, state, batch, {"images": images}))
real = [x.dtype for x in found if jnp.issubdtype(x.dtype, jnp.floating)]
print(len(real) > 100, *{str(x) for x in real})
"""
    double = {"XLA_FLAGS": QUICK, "PYTHONPATH": str(BENCH), "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | double,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "float64"]


COMMANDS = [p.name for p in BENCH.glob("*.py") if "__main__" in p.read_text()]


@pytest.mark.parametrize("script", COMMANDS)
def test_commands_find_what_they_import(script):
    """As README has it: from the top folder, nothing of ours being installed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, f"bench/{script}", "--help"],
        capture_output=True,
        text=True,
        cwd=BENCH.parent,
        env=environment,
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_recipes_go_all_the_way():
    """Trained, evaluated, exported, imported; bench/all_recipes.py does it for all."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch, which is absent")
    names = ["mimae_vits", "c10_vicreg"]
    done = subprocess.run(
        [sys.executable, BENCH / "all_recipes.py", *names],
        capture_output=True,
        text=True,
        cwd=BENCH.parent,
        env=os.environ | {"XLA_FLAGS": QUICK},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    good = re.compile(r"(torchvision|timm) within \de-0[5-9], [1-9]\d+ tensors")
    lines = done.stdout.splitlines()
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(name) and good.search(line), line


def test_every_recipe_becomes_small(monkeypatch):
    """Its fields are taken, its views parse, and its encoder is narrow."""
    monkeypatch.syspath_prepend(str(BENCH))
    every = importlib.import_module("all_recipes")
    small = importlib.import_module("support.small_recipes")
    for name in every.names():
        config = recipes.load(f"{BENCH.parent}/configs/{name}.py")
        fields = small.fields(config, Path("pictures"))
        config = recipes.override(config, {f"config.{k}": v for k, v in fields.items()})
        assert config.steps == small.STEPS
        assert config.batch in (small.BATCH, small.dense_pictures.TRAINED)
        encoder = config.model.encoder
        assert max(encoder.get("widths", (encoder.get("width", 0),))) in (16, 32, 64)
        assert max(encoder.image_size) <= 64
        for text in (*config.data.views, config.data.eval_view):
            parse(text, "view")


def test_recipes_that_do_not_get_there_are_said(monkeypatch, capfd):
    """Whether a command refuses, or the process is ended."""
    monkeypatch.syspath_prepend(str(BENCH))
    every = importlib.import_module("all_recipes")
    monkeypatch.setattr(every.small_recipes, "pictures", lambda folder: folder)
    assert every.here("mae_vitb") == errors.FAILED
    assert "FAILED Failed: mixjax.main ended with 2" in capfd.readouterr().out
    ended = subprocess.CompletedProcess([], -signal.SIGABRT)
    monkeypatch.setattr(every.subprocess, "run", lambda *args, **how: ended)
    assert every.apart("mae_vitb") == -signal.SIGABRT
    assert "FAILED: the process ended with -6" in capfd.readouterr().out


def test_where_time_goes_is_read_off_paths(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    where = importlib.import_module("step_profile")

    paths = {
        "transpose(jvp(ViT))/blocks_3/attn/qkv/dot_general": "encoder, attention",
        "jvp(ViT)/blocks_0/mlp/fc1/add": "encoder, mlp",
        "jvp(ViT)/norm/mul": "encoder, norms and sums",
        "transpose(jvp(TokenDecoder))/pred/add": "decoder, norms and sums",
        "jvp(Variational)/fc1/dot_general": "variational network",
        "jvp(TokenProjector)/fc1/dot_general": "projectors",
        "transpose(jvp())/mul": "losses and masks",
        "mul": "optimizer",
        "": "optimizer",
    }
    assert {path: where.part_of(path) for path in paths} == paths
