"""A siamese method at several resolutions: one in each step, with a memory for each.

Our version of Un-Mix's multi-scale variant (Shen et al., AAAI 2022, table 4). The paper
says that one bank of clean features is not enough, but not what to use instead, and no
code was released. Here every step draws a resolution, resizes all views to it on the
device (bilinear, antialiased), and compares with the queue of that resolution, so that
keys and queries always have one size. Network, teacher and optimizer are shared. Do not
expect the paper's 69.8.

The step is compiled once, with a branch for every resolution.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError
from mixjax.methods import siamese
from mixjax.state import Array, Aux, Clock, Method, Network, TrainState, Tree, Variables

PURPOSE = (1 << 30) + 1  # keeps the random key here apart from those of siamese.py


class Multiscale(NamedTuple):
    """The settings of the method."""

    siamese: Method
    resolutions: tuple[int, ...]  # sides of square images


def make(
    network: Network, *, resolutions: tuple[int, ...], method: Mapping, clock: Clock
) -> Method:
    """`method`, the section of a siamese method, at square `resolutions`.

    UsageError if a resolution is not positive or appears twice, or if the network
    takes images of one size only.
    """
    if not resolutions or min(resolutions) < 1:
        raise UsageError(f"method.resolutions={tuple(resolutions)} must be positive.")
    if len(set(resolutions)) < len(resolutions):
        raise UsageError(f"method.resolutions={tuple(resolutions)} has one twice.")
    if not network.geometry.any_size:
        raise UsageError("method.resolutions: this encoder takes images of one size.")
    inner = call("method.method", siamese.make, method, network=network, clock=clock)
    multiscale = Multiscale(inner, tuple(resolutions))
    return inner._replace(
        init=partial(init, multiscale), loss=partial(loss, multiscale)
    )


def init(multiscale: Multiscale, rng: Array, batch: dict) -> Variables:
    """The variables of the siamese method, with a memory for every resolution."""
    variables = multiscale.siamese.init(rng, batch)
    names = [str(size) for size in multiscale.resolutions]
    keys = jax.random.split(rng, len(names))
    memory = [multiscale.siamese.init(key, batch).memory for key in keys]
    return variables._replace(memory=dict(zip(names, memory, strict=True)))


def loss(
    multiscale: Multiscale, params: Tree, state: TrainState, batch: dict, rng: Array
) -> tuple[Array, Aux]:
    """The siamese loss at a resolution drawn for this step."""
    losses = [
        loss_at(multiscale.siamese, size, params, state, batch, rng)
        for size in multiscale.resolutions
    ]
    key = jax.random.fold_in(rng, PURPOSE)
    index = jax.random.randint(key, (), 0, len(losses))
    # A switch compiles every branch but runs only one of them.
    return jax.lax.switch(index, losses, batch["views"])


def loss_at(
    method: Method, size: int, params: Tree, state: TrainState, batch: dict, rng: Array
) -> Callable:
    """Returns views -> (loss, Aux) at one resolution.

    All branches of the switch must return one structure, so the carry has the memories
    of all resolutions, of which one is new.
    """

    def evaluate(views):
        small = tuple(resized(view, size) for view in views)
        local = state.replace(memory=state.memory[str(size)])
        value, aux = method.loss(params, local, {**batch, "views": small}, rng)
        memory = {**state.memory, str(size): aux.carry["memory"]}
        metrics = {**aux.metrics, "resolution": jnp.float32(size)}
        carry = {**aux.carry, "memory": memory}
        return value, aux._replace(carry=carry, metrics=metrics)

    return evaluate


def resized(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, size, size, C], bilinear; antialiased when shrinking."""
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "bilinear")
