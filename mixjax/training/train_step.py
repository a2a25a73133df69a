"""The training step: a pure function from state and batch to state and metrics."""

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
    config.accumulate: parts in which the batch goes through, one after the other; the
    gradient is the mean of theirs.
    """
    accumulate = config.accumulate

    def gradient(state, batch, resident, rng):
        batch = augment(batch, resident, rng)
        both = jax.value_and_grad(method.loss, has_aux=True)
        (loss, aux), grads = both(state.params, state, batch, rng)
        return grads, aux.stats, ({"loss": loss, **aux.metrics}, aux.carry)

    def accumulated(state, batch, resident, rng):
        def add(carry, part):
            total, stats = carry
            now = state.replace(stats=stats)
            grads, stats, rest = gradient(now, part, resident, rng)
            return (jax.tree.map(jnp.add, total, grads), stats), rest

        parts = jax.tree.map(lambda x: sub_batches.deal(x, accumulate), batch)
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, stats), rest = jax.lax.scan(add, (zeros, state.stats), parts)
        grads = jax.tree.map(lambda g: g / accumulate, total)
        return grads, stats, jax.tree.map(lambda x: x.mean(axis=0), rest)

    def step(state: TrainState, batch: dict, resident: dict):
        rng = step_key(config.seed, state.step)
        run = gradient if accumulate == 1 else accumulated
        grads, stats, (metrics, carry) = run(state, batch, resident, rng)
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            stats=stats,
        )
        return method.update(state, carry), {
            **metrics,
            "lr": rate,
            "grad_squares": squares,
        }

    return step


def jit_step(step: Callable, mesh, layout) -> Callable:
    """Compiles `step` once: state as `layout`, batch cut over `mesh`, state donated."""
    state = jax.tree.map(lambda s: s.sharding, layout)
    everywhere, cut = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        meshes.within(mesh, step),
        in_shardings=(state, cut, everywhere),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )
