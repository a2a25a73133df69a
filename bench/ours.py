"""A training step of mixjax to be timed: forward, backward and optimizer."""

import jax
import jax.numpy as jnp
import ml_collections

from mixjax import flops, meshes, methods, models, optim, schedules, train
from mixjax.schedules import Clock


def prepare(config, batch: int):
    """(run, facts): run() does one step on images that are there already."""
    on_cpu = jax.default_backend() == "cpu"
    config.model.precision = "float32" if on_cpu else "bfloat16"
    mesh = meshes.make(fsdp=1)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(1000, 1000))
    clock = schedules.Clock(1000, 10)
    schedule = schedules.make(config.schedule, batch=4096, clock=clock)
    shape = (batch, *network.geometry.image_size, 3)
    keys = jax.random.split(jax.random.key(1), len(config.data.views))
    views = tuple(jax.random.normal(key, shape) for key in keys)
    inputs = {"views": views, "index": jnp.arange(batch)}
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    variables = jax.eval_shape(method.init, jax.random.key(0), example)
    optimizer = optim.make(config.optim, schedule, variables.params, clock=clock)
    init = train.make_init(method, optimizer, example)
    state = jax.jit(init)(jax.random.key(0))
    plain = ml_collections.ConfigDict({"accumulate": 1, "seed": 0})
    same = lambda batch, resident, rng: batch
    step = jax.jit(
        train.make_step(method, optimizer, schedule, same, plain), donate_argnums=0
    )
    inputs = jax.device_put(inputs, meshes.batched(mesh))

    def run():
        nonlocal state
        state, metrics = step(state, inputs, {})
        jax.block_until_ready((state, metrics))

    def gradient(variables, inputs):
        first = train.first_state(variables, optimizer)
        loss = lambda p: method.loss(p, first, inputs, jax.random.key(0))[0]
        return jax.grad(loss)(first.params)

    device = jax.devices()[0]
    facts = {
        "work": flops.count(gradient, variables, example),
        "peak": flops.peak(device),
        "device": device.device_kind,
        "versions": f"jax {jax.__version__}",
    }
    return run, facts
