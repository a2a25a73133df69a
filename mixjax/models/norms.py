"""Batch normalization (Ioffe and Szegedy, 2015) with statistics of sub-batches.

As torch's BatchNorm and, with groups, as the split batch norm of MoCo's CIFAR code: the
batch is cut into groups, each is normalised by its own mean and biased variance, and
one running mean and variance is the average over the groups' updates. A group stands
for one of a paper's GPUs; it is made by a reshape, so results do not depend on the
number of devices. One group over a batch that lies on many devices is SyncBN.
Contiguous groups, a multiple of the devices, send nothing in the forward pass but the
sums for the running statistics. Interleaved groups (example i in group i % groups, what
the CIFAR code's view of memory comes to) lie across devices and are summed over them.

Statistics are float32 and two-pass whatever the precision of the activations. Where
pictures or regions are padded to a common size, weights of 0 keep what is padding out
of the statistics. Departures: none.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError

Array = jax.Array


def make_norm(
    *, groups: int, interleaved: bool, momentum: float, eps: float, unbiased: bool
) -> Callable:
    """The norm of config.model.norm: (affine, scale_init, name) -> BatchNorm.

    groups: sub-batches with statistics of their own, 1 for the whole batch.
    interleaved: example i is in group i % groups; else neighbours are together.
    momentum: what a running statistic keeps of itself (torch's is 1 minus that).
    unbiased: running variances are N / (N - 1) times the batch's, as torch has them.
    Raises UsageError for values that make no sense.
    """
    if groups < 1:
        raise UsageError(f"model.norm.groups={groups} must be at least 1.")
    if not 0 <= momentum <= 1:
        raise UsageError(f"model.norm.momentum={momentum} is not between 0 and 1.")
    if eps <= 0:
        raise UsageError(f"model.norm.eps={eps} must be more than 0.")
    how = {"groups": groups, "interleaved": interleaved, "momentum": momentum}
    return functools.partial(BatchNorm, **how, eps=eps, unbiased=unbiased)


def missing(**_) -> None:
    """Stands in for the norm where config.model has no such section."""
    raise UsageError(
        "model.norm is missing from the config; configs/common.py has norm(groups)."
    )


class BatchNorm(nn.Module):
    """x [B, ..., C] -> the same, every channel normalised; the fields: see make_norm.

    Keeps "mean" and "var" [C] float32 in the collection batch_stats: changed once by
    every call with train=True, read by those with train=False.
    """

    groups: int
    interleaved: bool
    momentum: float
    eps: float
    unbiased: bool
    affine: bool  # a scale and a bias to each channel
    scale_init: Callable

    @nn.compact
    def __call__(self, x: Array, *, train: bool, weights: Array | None = None) -> Array:
        """Raises UsageError if the groups do not divide a batch to train on.

        weights: 1 for positions to take statistics from, 0 for others, with as many
        axes as x but the last, each as long as in x or 1; None: all. All positions are
        normalised. A group with no position left moves no running statistic.
        """
        width, given = x.shape[-1:], x
        mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        if train:
            x, axis = grouped(x, self.groups, self.interleaved)
            if weights is None:
                use = moments(x.astype(jnp.float32), axis)  # [G, C], but for axes of 1
                count = given.size // width[0] // self.groups
                self.remember(mean, var, *use, count=count)
            else:
                weights = self.cut(weights, given.shape)
                *use, count = weighted_moments(x.astype(jnp.float32), weights, axis)
                self.remember_weighted(mean, var, *use, count)
        else:
            use = mean.value, var.value
        factor, shift = jax.lax.rsqrt(use[1] + self.eps), 0.0
        if self.affine:
            factor = factor * self.param("scale", self.scale_init, width)
            shift = self.param("bias", nn.initializers.zeros, width)
        x = (x.astype(jnp.float32) - use[0]) * factor + shift
        return x.reshape(given.shape).astype(given.dtype)

    def remember(self, mean, var, batch_mean: Array, batch_var: Array, count: int):
        """Moves the running statistics by those of groups of `count` values each."""
        keep, width = self.momentum, batch_mean.shape[-1]
        new = jnp.stack([batch_mean, batch_var]).reshape(2, -1, width)  # [2, G, C]
        new = (1 - keep) * new.mean(axis=1)
        factor = count / (count - 1) if self.unbiased else 1.0
        mean.value = keep * mean.value + new[0]
        var.value = keep * var.value + factor * new[1]

    def cut(self, weights: Array, shape: tuple[int, ...]) -> Array:
        """Weights of positions -> float32, in groups as x [B, ..., C] of `shape`."""
        weights = jnp.broadcast_to(weights, shape[:-1]).astype(jnp.float32)[..., None]
        groups, each = self.groups, shape[0] // self.groups
        split = (each, groups) if self.interleaved else (groups, each)
        return weights.reshape(*split, *weights.shape[1:])

    def remember_weighted(self, mean, var, batch_mean, batch_var, count: Array):
        """remember for groups that have `count` positions each, which may be none."""
        keep, width = self.momentum, batch_mean.shape[-1]
        count = count.reshape(-1, 1)  # [G, 1]
        factor = count / jnp.maximum(count - 1, 1) if self.unbiased else 1.0
        new = batch_mean.reshape(-1, width), factor * batch_var.reshape(-1, width)
        some = (count > 0).astype(jnp.float32)
        for running, values in zip((mean, var), new, strict=True):
            average = (some * values).sum(axis=0) / jnp.maximum(some.sum(), 1)  # [C]
            moved = keep * running.value + (1 - keep) * average
            running.value = jnp.where(some.any(), moved, running.value)


def grouped(x: Array, groups: int, interleaved: bool) -> tuple[Array, int]:
    """x with its batch axis as two, and which of them, 0 or 1, counts the groups.

    [B, ..., C] -> [G, B / G, ..., C], or [B / G, G, ..., C] for interleaved groups.
    """
    batch = x.shape[0]
    if batch % groups:
        near = [g for g in range(1, batch + 1) if batch % g == 0]
        near = sorted(sorted(near, key=lambda g: abs(g - groups))[:3])
        raise UsageError(
            f"model.norm.groups={groups} does not divide a batch of {batch}; "
            f"the nearest that do: {', '.join(map(str, near))}."
        )
    if x.size // x.shape[-1] // groups < 2:
        raise UsageError(
            f"model.norm.groups={groups} of a batch of {batch} leaves one value to a "
            f"statistic; take fewer groups or a larger batch."
        )
    each = batch // groups
    shape = (each, groups) if interleaved else (groups, each)
    return x.reshape(*shape, *x.shape[1:]), int(interleaved)


def moments(x: Array, group_axis: int) -> tuple[Array, Array]:
    """Mean and biased variance over all axes but the groups' and the last.

    The variance is that of the differences from the mean: the mean of squares less
    the square of the mean loses all digits where a mean is large.
    """
    axes = tuple(a for a in range(x.ndim - 1) if a != group_axis)
    mean = x.mean(axis=axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axis=axes, keepdims=True)


def weighted_moments(
    x: Array, weights: Array, group_axis: int
) -> tuple[Array, Array, Array]:
    """moments of the positions of weight 1 alone, and how many there are in a group.

    weights: as x, but with a last axis of 1. Without any, mean and variance are 0.
    """
    axes = tuple(a for a in range(x.ndim - 1) if a != group_axis)
    count = weights.sum(axis=axes, keepdims=True)
    share = weights / jnp.maximum(count, 1)
    mean = (share * x).sum(axis=axes, keepdims=True)
    variance = (share * jnp.square(x - mean)).sum(axis=axes, keepdims=True)
    return mean, variance, count
