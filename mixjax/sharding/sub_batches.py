"""Local sub-batches as a leading axis: [B, ...] <-> [G, B / G, ...].

Reference code often works per GPU: the partner of a mixture, the statistics of
BatchNorm, one lambda per process. Here the number of such groups is part of the recipe
and they are formed by a reshape, so results do not depend on the number of devices. If
G is a multiple of the device count, no group spans two devices and nothing is sent
between them.
"""

import jax

Array = jax.Array


def split(x: Array, groups: int) -> Array:
    """[B, ...] -> [G, B / G, ...], consecutive examples together.

    Raises ValueError if G does not divide B.
    """
    _check(x, groups)
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])  # [G, B / G, ...]


def merge(x: Array) -> Array:
    """[G, n, ...] -> [G * n, ...], the inverse of split."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # [B, ...]


def deal(x: Array, parts: int) -> Array:
    """[B, ...] -> [parts, B / parts, ...], example i to part i % parts.

    For sequential work such as gradient accumulation: every part is spread over all
    devices and each device keeps its rows, so nothing is sent. ValueError as in split.
    """
    _check(x, parts)
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return x.swapaxes(0, 1)  # [parts, B / parts, ...]


def _check(x: Array, parts: int) -> None:
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} does not split into {parts} parts")
