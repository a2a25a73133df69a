"""A training step of mixjax to be timed: forward, backward and optimizer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from mixjax import methods, models
from mixjax.optim import optimizers, schedules
from mixjax.optim.schedules import Clock
from mixjax.profiling import flops
from mixjax.sharding import meshes
from mixjax.training import initial_state, train_step


class Parts(NamedTuple):
    """A step, and what is to be put into it."""

    step: Callable  # jitted: (state, inputs, {}) -> (state, metrics); state is donated
    shapes: tuple  # of the step's arguments
    arguments: Callable  # () -> the first ones, on the devices
    facts: dict  # work, peak, device, versions


def make(config, batch: int) -> Parts:
    """The step of a recipe as training jits it, on `batch` random images."""
    on_cpu = jax.default_backend() == "cpu"
    config.model.precision = "float32" if on_cpu else "bfloat16"
    mesh = meshes.make(fsdp=1)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(1000, 1000))
    clock = schedules.Clock(1000, 10)
    schedule = schedules.make(config.schedule, batch=batch, clock=clock)
    shape = (batch, *network.geometry.image_size, 3)

    def pictures(key):
        keys = jax.random.split(key, len(config.data.views))
        views = tuple(jax.random.normal(key, shape) for key in keys)
        return {"views": views, "index": jnp.arange(batch)}

    key = jax.random.key(0)
    example = jax.eval_shape(pictures, key)
    variables = jax.eval_shape(method.init, key, example)
    optimizer = optimizers.make(config.optim, schedule, variables.params, clock=clock)
    init = initial_state.make_init(method, optimizer, example)
    layout = meshes.lay_out(mesh, jax.eval_shape(init, key), ())
    plain = ml_collections.ConfigDict({"accumulate": 1, "seed": 0})
    same = lambda batch, resident, rng: batch
    step = train_step.make_step(method, optimizer, schedule, same, plain)

    def arguments():
        shardings = jax.tree.map(lambda s: s.sharding, layout)
        state = jax.jit(init, out_shardings=shardings)(key)
        made = jax.jit(pictures, out_shardings=meshes.batched(mesh))
        return state, made(jax.random.key(1)), {}

    def gradient(variables, inputs):
        first = initial_state.first_state(variables, optimizer)
        loss = lambda p: method.loss(p, first, inputs, jax.random.key(0))[0]
        return jax.grad(loss)(first.params)

    device = jax.devices()[0]
    facts = {
        "work": flops.count(gradient, variables, example),
        "peak": flops.peak(device),
        "device": device.device_kind,
        "versions": f"jax {jax.__version__}",
    }
    step = train_step.jit_step(step, mesh, layout)
    return Parts(step, (layout, example, {}), arguments, facts)


def prepare(config, batch: int):
    """(run, facts): run() does one step on images that are there already."""
    parts = make(config, batch)
    state, inputs, resident = parts.arguments()

    def run():
        nonlocal state
        state, metrics = parts.step(state, inputs, resident)
        jax.block_until_ready((state, metrics))

    return run, parts.facts
