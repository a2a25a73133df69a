"""What a compiled step sends and what it keeps in memory, counted."""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from mixjax.errors import UsageError
from mixjax.profiling import collectives, device_memory
from mixjax.profiling.collectives import Collective
from mixjax.sharding import meshes
from mixjax.state import Aux, TrainState
from mixjax.training import explain_step
from tests.support import tiny

# --- collectives ---------------------------------------------------------------------

CODE = """\
HloModule jit_step, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p: (s32[], bf16[2,3])) -> (s32[], bf16[2,3]) {
  %gathered = bf16[16,3]{1,0:T(8,128)(2,1)} all-gather(%part), dimensions={0}
}

%outer_body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], bf16[2,3]) while(%t), condition=%c, body=%inner_body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %summed = (f32[8]{0}, /*index=1*/pred[5]{0}) all-reduce(%a, %b), to_apply=%add
}

%branch (p: f32[]) -> f32[] {
  %moved = s8[7]{0} collective-permute(%p), source_target_pairs={{0,1}}
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %w.1 = (s32[], f32[8]) while(%t), condition=%c, body=%outer_body.1, \
backend_config={"known_trip_count":{"n":"5"}}
  %w.2 = (s32[], f32[8]) while(%t), condition=%c, body=%outer_body.1
  %if = f32[] conditional(%i, %u, %v), branch_computations={%branch, %branch}
  %g = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%a), dimensions={0}
  %g.1 = f32[16,4]{1,0} all-gather-done(%g)
  %r = ((f32[16]{0}, f32[8]{0}), (f32[2]{0}, f32[1]{0}), u32[]) \
reduce-scatter-start(%x, %y), to_apply=%add
  %p = (f8e4m3fn[6]{0}, f8e4m3fn[6]{0}, u32[], u32[]) collective-permute-start(%q)
  %s = (f32[3]{0}, c64[2]{0}) all-reduce-start(%x, %y), to_apply=%add
  ROOT %f = f32[8,4]{1,0} fusion(%a), metadata={op_name="jit(step) = all-gather("}
}
"""


def test_collectives_of_a_text():
    found = collectives.parse(CODE)
    bf16, f32 = ("bf16", (16, 3)), ("f32", (8,))
    assert found == [
        Collective("all-gather", (bf16,), 3 * 6),  # in a loop of five turns, and once
        Collective("all-reduce", (f32, ("pred", (5,))), 6),
        Collective("collective-permute", (("s8", (7,)),), 2),
        Collective("all-gather", (("f32", (16, 4)),), 1),
        Collective("reduce-scatter", (("f32", (2,)), ("f32", (1,))), 1),
        Collective("collective-permute", (("f8e4m3fn", (6,)),), 1),
        Collective("all-reduce", (("f32", (3,)), ("c64", (2,))), 1),
    ]
    assert [c.bytes for c in found] == [1728, 222, 14, 256, 12, 6, 28]


def test_a_budget_names_the_largest_first():
    shapes = [(n, 100) for n in (1, 5, 3, 4)]
    found = [Collective("all-gather", (("bf16", s),), 2) for s in shapes]
    found += [Collective("all-reduce", (("f32", ()), ("f32", (9,))), 1)]
    gathers, *largest, sums, sum_ = explain_step.describe_collectives(found)
    assert gathers.split() == ["all-gather", "8", "times", "5.08", "KiB"]
    shown = [line.split("  ")[-1] for line in largest]
    assert shown == [f"2 x bf16[{n},100]" for n in (5, 4, 3)]
    assert sums.split() == ["all-reduce", "1", "times", "40", "bytes"]
    assert sum_.endswith("f32[9] and 1 more")
    assert explain_step.describe_collectives([]) == ["  nothing"]


# --- memory --------------------------------------------------------------------------


def kept(layer, dtype=jnp.float32):
    """What a loss of two layers keeps of 32 examples: [32, 8] by [8, 8] twice."""
    params = {"a": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    params["b"] = params["a"]

    def loss(params, state, batch, rng):
        x = batch["x"].astype(dtype)
        for name in ("a", "b"):
            x = layer(x, params[name].astype(dtype))
        return x.sum(), Aux({}, {}, {})

    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {}, {}, {}, {})
    batch = {"x": jax.ShapeDtypeStruct((32, 8), jnp.float32)}
    return device_memory.kept(loss, state, batch)


def plain(x, w):
    return jnp.sin(x @ w)


ONE = 32 * 8 * 4  # bytes of the examples at one place


def test_kept_is_what_the_gradient_reads():
    """The input of each product and the cosine of each result; no parameter."""
    assert kept(plain) == device_memory.Kept(examples=4 * ONE, copies=0)
    # What enters a layer is kept, the rest is computed again.
    assert kept(jax.checkpoint(plain)) == device_memory.Kept(2 * ONE, 0)
    # Half of it in half the bits, and a copy of `b`; of `a` none, which reads no
    # gradient of its input.
    half = device_memory.Kept(4 * ONE // 2, copies=8 * 8 * 2)
    assert kept(plain, jnp.bfloat16) == half


def test_a_broadcast_is_not_kept():
    assert kept(lambda x, w: x @ w * 2.0) == device_memory.Kept(2 * ONE, 0)
    scaled = kept(lambda x, w: x @ w * jnp.broadcast_to(w[0], x.shape))
    assert scaled == device_memory.Kept(4 * ONE, copies=2 * 8 * 4)


def test_bytes_on_a_device():
    mesh = meshes.make(fsdp=4)
    leaf = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    laid = meshes.lay_out(mesh, {"w": leaf, "b": leaf}, [("w", "split")])
    assert device_memory.total(laid) == 2 * 64
    assert device_memory.on_one_device(laid) == 64 + 16
    texts = [device_memory.text(n) for n in (0, 1023, 1536, 3 * 2**30, 2**52)]
    assert texts == ["0 bytes", "1023 bytes", "1.50 KiB", "3.00 GiB", "4096.00 TiB"]


# --- explain -------------------------------------------------------------------------


def test_a_step_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = {"model__encoder__depth": 1, "batch": 88, "mesh__fsdp": 4}
    lines = explain_step.explain(tiny.config(**quick))
    assert lines[0] == "devices: 8 x cpu as data 2 x fsdp 4"
    text = "\n".join(lines)
    assert "split over fsdp=4: 33 tensors of the state" in text
    for word in ("arguments", "temporaries", "all-gather", "all-reduce"):
        assert f"  {word}" in text
    assert "0 bytes" not in text.partition("temporaries")[2].splitlines()[0]
    assert not list(tmp_path.iterdir())


def test_what_is_split_adds_up():
    config = tiny.config(mesh__fsdp=8, batch=88)
    config.mesh.rules = ((".", "split"),)
    step = explain_step.compile_step(config, digits(), {})
    per_device, total = explain_step.measure_state(step.run)
    params = device_memory.total(step.run.layout.params)
    assert 3 * params <= total < 3 * params + 100  # AdamW's two moments, some counters
    assert total / 8 <= per_device < total / 7
    assert step.memory.argument_size_in_bytes > per_device


def digits():
    from mixjax.data import sources

    return sources.open_source("digits", "train", "")


def test_data_that_is_missing_is_said(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        explain_step.explain(tiny.config(data__source=f"folder:{tmp_path}/none"))


def test_the_benchmark_has_a_row_for_each_layout(tmp_path, capsys, monkeypatch):
    bench = tiny.ROOT / "bench"
    monkeypatch.syspath_prepend(str(bench))
    spec = importlib.util.spec_from_file_location(
        "bench_memory", bench / "fsdp_memory.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("mixjax.doctor.devices.simulate", lambda number: None)
    small = {f"config.{k}": v for k, v in tiny.FIELDS.items() if "model" in k}
    flags = [f"--{k}={v}" for k, v in small.items()]
    written = tmp_path / "found.json"
    argv = ["fsdp_memory.py", "--recipes=quickstart", "--batch=16", f"--json={written}"]
    monkeypatch.setattr(sys, "argv", argv + flags)
    module.main()
    rows = json.loads(written.read_text())["rows"]
    assert [(r["recipe"], r["fsdp"], r["batch"]) for r in rows] == [
        ("quickstart", 1, 16),
        ("quickstart", 8, 16),
    ]
    assert rows[0]["share"] == 1.0 and rows[1]["share"] < 1 / 4
    assert "quickstart, fsdp=8" in capsys.readouterr().out


def test_of_the_large_recipes_a_device_has_a_sixth_at_most():
    found = json.loads((tiny.ROOT / "results" / "bench_memory.json").read_text())
    shares = {(r["recipe"], r["fsdp"]): r["share"] for r in found["rows"]}
    for recipe in ("mae_vitl", "mae_vith"):
        assert shares[recipe, 1] == 1.0 and shares[recipe, 8] <= 1 / 6
