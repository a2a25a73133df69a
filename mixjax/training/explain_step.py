"""Explains a recipe's training step: the layout of its state, memory, communication.

The step is the one that training would run, compiled for the devices of this machine.
No array of the state is created, and nothing is written.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from mixjax import data
from mixjax.data import sources
from mixjax.data.source import Source, subset
from mixjax.profiling import collectives, device_memory
from mixjax.profiling.collectives import Collective
from mixjax.sharding import meshes
from mixjax.training.build import Assembly, assemble
from mixjax.training.train_step import jit_step, make_step

LARGEST = 3  # collectives of each kind that are listed


class Step(NamedTuple):
    """The compiled step of a run."""

    run: Assembly
    code: str  # optimised HLO
    memory: object | None  # the compiler's memory analysis; None if it has none
    seconds: float  # time to lower and compile it


def explain(config) -> list[str]:
    """Lines that explain the step of config's run; UsageError as for training."""
    fields = config.data
    source = sources.open_source(fields.source, fields.split, fields.directory)
    return describe_step(compile_step(config, source, {}))


def describe_step(step: Step) -> list[str]:
    """Lines on the layout of the state, on memory, and on communication."""
    return [
        f"devices: {meshes.describe(step.run.mesh)}",
        *describe_layout(step.run),
        f"the step, compiled in {step.seconds:.0f} s, uses on each device:",
        *describe_memory(step.memory),
        "and communicates, by the size of the results on each device:",
        *describe_collectives(collectives.parse(step.code)),
    ]


def compile_step(config, source: Source, options: Mapping, devices=None) -> Step:
    """Compiles the step that trains on `source`.

    options: of the compiler. devices: to compile for; default: those of this machine.
    """
    start = time.monotonic()
    run, lowered = lower_step(config, source, devices)
    compiled = lowered.compile(compiler_options=dict(options))
    seconds = time.monotonic() - start
    return Step(run, compiled.as_text(), compiled.memory_analysis(), seconds)


def lower_step(
    config, source: Source, devices=None
) -> tuple[Assembly, jax.stages.Lowered]:
    """(the run, its step as the compiler gets it); arguments as of compile_step."""
    mesh = meshes.make(fsdp=config.mesh.fsdp, devices=devices)
    meshes.check_batch(mesh, config.batch, config.accumulate)
    here = meshes.make(fsdp=1) if devices is not None else mesh
    settings = dict(seed=config.seed, mesh=here)
    sets = data.make(config.data, batch=config.batch, opened=(source, None), **settings)
    run = assemble(config, mesh, sets)
    inputs = step_inputs(config, source, here)
    step = make_step(run.method, run.optimizer, run.schedule, inputs.augment, config)
    jitted = jit_step(step, mesh, run.layout)
    return run, jitted.lower(run.layout, inputs.batch, inputs.resident)


class Inputs(NamedTuple):
    """What a step takes besides the state: shapes, and the views as a function."""

    batch: dict
    resident: dict
    augment: Callable


def step_inputs(config, source: Source, mesh) -> Inputs:
    """The inputs of a step on `source`; mesh: of devices that exist.

    Their dtypes and shapes come from a real batch of a few examples, as many as there
    are devices: to read config.batch examples would take far longer.
    """
    few = subset(source, np.arange(min(mesh.size, source.size)))
    settings = dict(seed=config.seed, mesh=mesh, opened=(few, None))
    small = data.make(config.data, batch=mesh.size, **settings).train
    with contextlib.closing(small.batches(0, 1)) as batches:
        batch = jax.eval_shape(lambda x: x, next(batches))

    def sized(tree, rows):
        shape = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
        return jax.tree.map(shape, tree)

    return Inputs(
        sized(batch, config.batch), sized(small.resident, source.size), small.augment
    )


class StateBytes(NamedTuple):
    """Bytes of parameters and optimizer state."""

    per_device: int
    total: int  # of one copy of each tensor, however many devices hold one


def measure_state(run: Assembly) -> StateBytes:
    """Measures the parameters and the optimizer's state."""
    trees = run.layout.params, run.layout.opt_state
    return StateBytes(device_memory.on_one_device(trees), device_memory.total(trees))


def describe_layout(run: Assembly) -> list[str]:
    """Lines on the sizes of the split and the replicated part of the state."""
    leaves = jax.tree.leaves(run.layout)
    split = [x for x in leaves if not x.sharding.is_fully_replicated]
    replicated = [x for x in leaves if x.sharding.is_fully_replicated]
    params = device_memory.on_one_device(run.layout.params)
    per_device, total = measure_state(run)
    text = device_memory.text
    return [
        f"split over fsdp={run.mesh.shape['fsdp']}: {len(split)} tensors of the state, "
        f"{text(device_memory.total(split))}; replicated: {len(replicated)}, "
        f"{text(device_memory.total(replicated))}",
        f"on each device: parameters {text(params)}, optimizer "
        f"{text(per_device - params)}; {per_device / total:.3f} of the {text(total)} "
        f"of a full copy",
    ]


def describe_memory(analysis) -> list[str]:
    """Lines on the memory of a step, from the compiler's analysis."""
    if analysis is None:
        return ["  (not reported by this kind of device)"]
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        # The donated state: its new arrays take the buffers of the old ones.
        "  of which reuse the arguments' memory": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }
    return [
        f"  {name:<38}{device_memory.text(size):>12}" for name, size in sizes.items()
    ]


def describe_collectives(step_collectives: list[Collective]) -> list[str]:
    """A line for each kind of collective, each followed by the largest of its kind."""
    lines = []
    for kind in sorted({c.kind for c in step_collectives}):
        of_kind = [c for c in step_collectives if c.kind == kind]
        size, times = sum(c.bytes for c in of_kind), sum(c.times for c in of_kind)
        lines.append(f"  {kind:<26}{times:>5} times {device_memory.text(size):>12}")
        for collective in sorted(of_kind, key=lambda c: -c.bytes)[:LARGEST]:
            size, results = collective.bytes, describe_results(collective)
            lines.append(f"    {device_memory.text(size):>12}  {results}")
    return lines or ["  nothing"]


def describe_results(collective: Collective) -> str:
    """Such as "24 x bf16[1024,4096] and 3 more", with the largest result's shape."""
    kind, times = collective.kind, collective.times
    repeated = f"{times} x " if times > 1 else ""
    # XLA combines collectives: their results then are a tuple of arrays.
    results = sorted(
        collective.results, key=lambda result: -Collective(kind, (result,), 1).bytes
    )
    dtype, shape = results[0]
    others = f" and {len(results) - 1} more" if len(results) > 1 else ""
    return f"{repeated}{dtype}[{','.join(map(str, shape))}]{others}"
