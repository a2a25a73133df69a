"""The training step: a pure function from state and batch to state and metrics."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mixjax.optim import schedules
from mixjax.sharding import meshes, sub_batches
from mixjax.state import Method, TrainState, step_key


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    schedule: schedules.Schedule,
    augment: Callable,
    config,
) -> Callable:
    """Returns the pure step (state, batch, resident) -> (state, metrics).

    resident: the arrays of the data set that stay on the devices, {} if there are none.
    metrics: scalars, and "grad_squares" [T], the squared gradient norm of each tensor.
    config.accumulate: the number of parts of the batch that are processed one after
    another; the gradient is the mean over them.
    """
    gradient = functools.partial(compute_gradients, method, augment)
    if config.accumulate > 1:
        gradient = functools.partial(accumulate_gradients, gradient, config.accumulate)

    def step(state: TrainState, batch: dict, resident: dict):
        # A function of seed and step alone: a resumed run draws the same numbers.
        rng = step_key(config.seed, state.step)
        grads, stats, (metrics, carry) = gradient(state, batch, resident, rng)
        # One vector [T] instead of T scalars: the host fetches it in one transfer.
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        # The rate of the update below, so before state.step is incremented.
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            stats=stats,
        )
        # After the optimizer: a momentum teacher follows the new parameters.
        state = method.update(state, carry)
        return state, {**metrics, "lr": rate, "grad_squares": squares}

    return step


def compute_gradients(method: Method, augment: Callable, state, batch, resident, rng):
    """Returns (gradients, batch statistics, (metrics, carry)) of a batch."""
    batch = augment(batch, resident, rng)
    value_and_grad = jax.value_and_grad(method.loss, has_aux=True)
    (loss, aux), grads = value_and_grad(state.params, state, batch, rng)
    return grads, aux.stats, ({"loss": loss, **aux.metrics}, aux.carry)


def accumulate_gradients(gradient: Callable, parts: int, state, batch, resident, rng):
    """Like compute_gradients, for a batch processed in `parts`.

    Gradients, metrics and carry are means over the parts. Batch statistics pass from
    each part to the next, as if the parts were steps.
    """

    def add_part(sums, part):
        total, stats = sums
        # The same `rng` for all parts: the key of an example depends on its index in
        # the data set (state.example_keys), as it does in an undivided batch.
        grads, stats, outputs = gradient(
            state.replace(stats=stats), part, resident, rng
        )
        return (jax.tree.map(jnp.add, total, grads), stats), outputs

    # [B, ...] -> [parts, B / parts, ...], without moving examples between devices.
    divided = jax.tree.map(lambda x: sub_batches.deal(x, parts), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    # A scan compiles one part only, and frees its activations before the next.
    (total, stats), outputs = jax.lax.scan(add_part, (zeros, state.stats), divided)
    grads = jax.tree.map(lambda g: g / parts, total)
    return grads, stats, jax.tree.map(lambda x: x.mean(axis=0), outputs)


def jit_step(step: Callable, mesh, layout) -> Callable:
    """Jits `step` with the state laid out as `layout` and the batch split over `mesh`.

    The state is donated: its buffers are reused for the new state, as a second copy may
    not fit. The shardings of the outputs are fixed too: if the compiler chose others,
    the next step would have to be compiled again for them.
    """
    state = jax.tree.map(lambda s: s.sharding, layout)
    replicated, split = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        meshes.within(mesh, step),
        in_shardings=(state, split, replicated),
        out_shardings=(state, replicated),
        donate_argnums=0,
    )


def compile_step(config, run) -> Callable:
    """Returns the jitted step of an assembled run (build.Assembly)."""
    step = make_step(
        run.method, run.optimizer, run.schedule, run.sets.train.augment, config
    )
    return jit_step(step, run.mesh, run.layout)
