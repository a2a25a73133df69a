"""A siamese method at several resolutions: one of them each step, a memory for each.

Un-Mix's multi-scale variant (Shen et al., AAAI 2022, table 4) in our own form: the
paper says that one bank of clean features is not enough there, but not what is, and no
code was released. Here every step draws a resolution, resizes all views to it on the
device (bilinear, antialiased), and compares with the queue of that resolution, so keys
and queries are always of one size. Network, teacher and optimizer are shared. Do not
expect the paper's 69.8.

The step is compiled once, with a branch for every resolution.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError
from mixjax.methods import siamese
from mixjax.state import Clock, Method, Network

PURPOSE = (1 << 30) + 1  # keeps the key here apart from those of siamese.py


def make(
    network: Network, *, resolutions: tuple[int, ...], method: Mapping, clock: Clock
) -> Method:
    """`method`, the section of a siamese method, at square `resolutions`.

    UsageError if a resolution is not positive, comes twice, or the network takes one
    size only.
    """
    if not resolutions or min(resolutions) < 1:
        raise UsageError(f"method.resolutions={tuple(resolutions)} must be positive.")
    if len(set(resolutions)) < len(resolutions):
        raise UsageError(f"method.resolutions={tuple(resolutions)} has one twice.")
    if not network.geometry.any_size:
        raise UsageError("method.resolutions: this encoder takes images of one size.")
    inner = call("method.method", siamese.make, method, network=network, clock=clock)
    names = [str(size) for size in resolutions]

    def init(rng, batch):
        variables = inner.init(rng, batch)
        keys = jax.random.split(rng, len(names))
        memory = [inner.init(key, batch).memory for key in keys]
        return variables._replace(memory=dict(zip(names, memory, strict=True)))

    def loss(params, state, batch, rng):
        def at(size):
            def run(views):
                small = tuple(resized(view, size) for view in views)
                now = state.replace(memory=state.memory[str(size)])
                value, aux = inner.loss(params, now, {**batch, "views": small}, rng)
                memory = {**state.memory, str(size): aux.carry["memory"]}
                metrics = {**aux.metrics, "resolution": jnp.float32(size)}
                carry = {**aux.carry, "memory": memory}
                return value, aux._replace(carry=carry, metrics=metrics)

            return run

        key = jax.random.fold_in(rng, PURPOSE)
        which = jax.random.randint(key, (), 0, len(resolutions))
        return jax.lax.switch(which, [at(s) for s in resolutions], batch["views"])

    return inner._replace(init=init, loss=loss)


def resized(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, size, size, C], bilinear; antialiased where it shrinks."""
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "bilinear")
