"""What a step of a recipe does on the devices: what lies where, and what is sent.

The step is the one that train would run, compiled for the devices that are there; no
array of the state is made and nothing is written.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax

from mixjax import data
from mixjax.data import sources
from mixjax.data.source import Source
from mixjax.profiling import collectives, device_memory
from mixjax.profiling.collectives import Collective
from mixjax.sharding import meshes
from mixjax.training.build import Assembly, assemble
from mixjax.training.train_step import jit_step, make_step

LARGEST = 3  # collectives of a kind that are shown


class Step(NamedTuple):
    """The compiled step of a run."""

    run: Assembly
    code: str
    memory: object | None  # what the compiler says of it, None if it does not
    seconds: float  # that tracing and compiling took


def explain(config) -> list[str]:
    """Lines to read about the step of config's run; UsageError as train has it."""
    fields = config.data
    source = sources.open_source(fields.source, fields.split, fields.directory)
    step = compile_step(config, source, {})
    return [
        f"devices: {meshes.describe(step.run.mesh)}",
        *layout(step.run),
        f"the step, compiled in {step.seconds:.0f} s, uses on each device:",
        *usage(step.memory),
        "and sends, by the results that a device has of it:",
        *budget(collectives.parse(step.code)),
    ]


def compile_step(config, source: Source, options: Mapping) -> Step:
    """Compiles the step that trains on `source`; options: of the compiler."""
    mesh = meshes.make(fsdp=config.mesh.fsdp)
    meshes.check_batch(mesh, config.batch, config.accumulate)
    settings = dict(seed=config.seed, mesh=mesh, opened=(source, None))
    sets = data.make(config.data, batch=config.batch, **settings)
    run = assemble(config, mesh, sets)
    # Of a real batch, one example to a device tells the shapes.
    few = data.make(config.data, batch=mesh.size, **settings).train
    with contextlib.closing(few.batches(0, 1)) as batches:
        shapes = jax.eval_shape(lambda x: x, next(batches))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype), shapes
    )
    step = make_step(run.method, run.optimizer, run.schedule, few.augment, config)
    begin = time.monotonic()
    lowered = jit_step(step, mesh, run.layout).lower(run.layout, batch, few.resident)
    compiled = lowered.compile(compiler_options=dict(options))
    seconds = time.monotonic() - begin
    return Step(run, compiled.as_text(), compiled.memory_analysis(), seconds)


class Share(NamedTuple):
    """Bytes of parameters and optimizer on one device, and of all of them."""

    here: int
    whole: int


def share(run: Assembly) -> Share:
    """What a device has of parameters and optimizer."""
    trees = run.layout.params, run.layout.opt_state
    return Share(device_memory.on_one_device(trees), device_memory.total(trees))


def layout(run: Assembly) -> list[str]:
    """What of the state is split and what replicated."""
    leaves = jax.tree.leaves(run.layout)
    split = [x for x in leaves if not x.sharding.is_fully_replicated]
    copied = [x for x in leaves if x.sharding.is_fully_replicated]
    params = device_memory.on_one_device(run.layout.params)
    here, whole = share(run)
    return [
        f"split over fsdp={run.mesh.shape['fsdp']}: {len(split)} tensors of the state, "
        f"{device_memory.text(device_memory.total(split))}; replicated: {len(copied)}, "
        f"{device_memory.text(device_memory.total(copied))}",
        f"on each device: parameters {device_memory.text(params)}, optimizer "
        f"{device_memory.text(here - params)}; {here / whole:.3f} of the "
        f"{device_memory.text(whole)} of a whole copy",
    ]


def usage(analysis) -> list[str]:
    """The compiler's account of a step's memory, in lines."""
    if analysis is None:
        return ["  (this kind of device does not tell)"]
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "  of these in the place of arguments": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }
    return [
        f"  {name:<38}{device_memory.text(size):>12}" for name, size in parts.items()
    ]


def budget(collectives_sent: list[Collective]) -> list[str]:
    """A line for each kind of collective, and below it for its largest."""
    lines = []
    for kind in sorted({c.kind for c in collectives_sent}):
        these = [c for c in collectives_sent if c.kind == kind]
        sent, times = sum(c.bytes for c in these), sum(c.times for c in these)
        lines.append(f"  {kind:<26}{times:>5} times {device_memory.text(sent):>12}")
        for one in sorted(these, key=lambda c: -c.bytes)[:LARGEST]:
            lines.append(f"    {device_memory.text(one.bytes):>12}  {shapes_of(one)}")
    return lines or ["  nothing"]


def shapes_of(one: Collective) -> str:
    """ "24 x bf16[1024,4096] and 3 more", the largest of its results first."""
    often = f"{one.times} x " if one.times > 1 else ""
    order = sorted(one.results, key=lambda r: -Collective(one.kind, (r,), 1).bytes)
    shape = f"{order[0][0]}[{','.join(map(str, order[0][1]))}]"
    more = f" and {len(order) - 1} more" if len(order) > 1 else ""
    return f"{often}{shape}{more}"
