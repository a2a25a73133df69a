"""Initial values that flax has no name for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def torch_default(fan_in: int) -> Callable:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    So torch's linear layers and convolutions start, kernels and biases, unless the
    network says otherwise.
    """
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
