"""Bytes of a training state per device, and of what is kept for the backward pass.

Everything is counted from shapes; nothing is compiled and no array is allocated.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.extend.core import Literal

from mixjax.state import TrainState

# Operations that the compiler fuses into their consumers, without writing to memory.
VIEWS = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}


class Kept(NamedTuple):
    """Bytes kept for the backward pass, as traced: before the compiler fuses."""

    examples: int  # what depends on the examples, for the whole batch
    copies: int  # what does not: parameters cast to another type


def total(tree) -> int:
    """Bytes of all arrays of a tree of shapes."""
    return sum(_bytes(x) for x in jax.tree.leaves(tree))


def on_one_device(layout) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    parts = (
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(layout)
    )
    return sum(parts)


def kept(loss: Callable, state: TrainState, batch: dict) -> Kept:
    """What the gradient of `loss` needs from the forward pass.

    loss: that of a Method. state, batch: shapes. The state itself does not count, and
    what remat recomputes is not kept.
    """

    def backward(state, batch):
        function = lambda params: loss(params, state, batch, jax.random.key(0))
        return jax.vjp(function, state.params, has_aux=True)[1]

    jaxpr = jax.make_jaxpr(backward)(state, batch).jaxpr
    state_inputs = len(jax.tree.leaves(state))
    varies, made_from = set(jaxpr.invars[state_inputs:]), {}
    for equation in jaxpr.eqns:
        inputs = [x for x in equation.invars if not isinstance(x, Literal)]
        if not varies.isdisjoint(inputs):
            varies.update(equation.outvars)
        if equation.primitive.name in VIEWS:
            made_from[equation.outvars[0]] = inputs[0] if inputs else None

    def origin(variable):
        while variable in made_from:
            variable = made_from[variable]
        return variable

    results = {origin(x) for x in jaxpr.outvars if not isinstance(x, Literal)}
    results -= {None, *jaxpr.invars[:state_inputs]}  # a broadcast number; the state
    return Kept(
        examples=sum(_bytes(x.aval) for x in results & varies),
        copies=sum(_bytes(x.aval) for x in results - varies),
    )


def text(size: float) -> str:
    """A number of bytes as text, such as "1.23 GiB"."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.2f} {units[0]}"


def _bytes(shape) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize
