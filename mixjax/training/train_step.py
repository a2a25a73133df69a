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
    """The pure step (state, batch, resident) -> (state, metrics).

    metrics: scalars, and "grad_squares", the squared gradient norm of every tensor.
    config.accumulate: the number of parts in which the batch is processed, one after
    the other; the gradient is the mean of theirs.
    """
    gradient = functools.partial(gradient_of, method, augment)
    if config.accumulate > 1:
        gradient = functools.partial(accumulated, gradient, config.accumulate)

    def step(state: TrainState, batch: dict, resident: dict):
        rng = step_key(config.seed, state.step)
        grads, stats, (metrics, carry) = gradient(state, batch, resident, rng)
        # One vector instead of a scalar per tensor: it is fetched by the host.
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            stats=stats,
        )
        # After the optimizer: a teacher follows the new parameters.
        state = method.update(state, carry)
        return state, {**metrics, "lr": rate, "grad_squares": squares}

    return step


def gradient_of(method: Method, augment: Callable, state, batch, resident, rng):
    """(gradients, batch statistics, (metrics, carry)) of one batch."""
    batch = augment(batch, resident, rng)
    value_and_grad = jax.value_and_grad(method.loss, has_aux=True)
    (loss, aux), grads = value_and_grad(state.params, state, batch, rng)
    return grads, aux.stats, ({"loss": loss, **aux.metrics}, aux.carry)


def accumulated(gradient: Callable, parts: int, state, batch, resident, rng):
    """As gradient_of, on `parts` of the batch in turn: the mean of their gradients.

    Batch statistics pass from one part to the next.
    """

    def add(sums, part):
        total, stats = sums
        grads, stats, outputs = gradient(
            state.replace(stats=stats), part, resident, rng
        )
        return (jax.tree.map(jnp.add, total, grads), stats), outputs

    divided = jax.tree.map(lambda x: sub_batches.deal(x, parts), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (total, stats), outputs = jax.lax.scan(add, (zeros, state.stats), divided)
    grads = jax.tree.map(lambda g: g / parts, total)
    return grads, stats, jax.tree.map(lambda x: x.mean(axis=0), outputs)


def jit_step(step: Callable, mesh, layout) -> Callable:
    """Compiles `step` once: state as `layout` and donated, batch split over `mesh`."""
    state = jax.tree.map(lambda s: s.sharding, layout)
    everywhere, split = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        meshes.within(mesh, step),
        in_shardings=(state, split, everywhere),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )


def compile_step(config, run) -> Callable:
    """The jitted step of an assembled run (build.Assembly)."""
    step = make_step(
        run.method, run.optimizer, run.schedule, run.sets.train.augment, config
    )
    return jit_step(step, run.mesh, run.layout)
