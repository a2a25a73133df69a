"""Initializers that flax does not provide."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def torch_default(fan_in: int) -> Callable:
    """Samples U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    This is torch's default for the kernels and biases of linear layers and
    convolutions.
    """
    # fan_in is an argument because the shape of a bias does not tell it.
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
