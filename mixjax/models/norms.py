"""Batch normalization (Ioffe and Szegedy, 2015) with statistics of sub-batches.

With one group this is PyTorch's BatchNorm; with several, the split batch norm of MoCo's
CIFAR code. The batch is split into groups, each normalised by its own mean and biased
variance, and the running statistics average the groups' updates. A group stands for one
of the paper's GPUs. Groups come from a reshape, so results do not depend on the number
of devices; one group over a batch spread across devices is SyncBN.

If the number of contiguous groups is a multiple of the number of devices, the forward
pass communicates only the sums for the running statistics. Interleaved groups (example
i in group i % groups, which is what the view in the CIFAR code amounts to) span
devices, so their statistics are reduced across devices.

Statistics are computed in float32 and in two passes, whatever the precision of the
activations. Where images or regions are padded to a common size, weights of 0 exclude
the padding from the statistics. Departures: none.
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
    """Builds the norm of config.model.norm: (affine, scale_init, name) -> BatchNorm.

    groups: the number of sub-batches with separate statistics; 1 is the whole batch.
    interleaved: put example i in group i % groups; otherwise groups are contiguous.
    momentum: the weight of the old running statistic (1 minus PyTorch's momentum).
    unbiased: scale running variances by N / (N - 1), as PyTorch does.
    Raises UsageError if groups, momentum or eps is out of range.
    """
    if groups < 1:
        raise UsageError(f"model.norm.groups={groups} must be at least 1.")
    if not 0 <= momentum <= 1:
        raise UsageError(f"model.norm.momentum={momentum} is not between 0 and 1.")
    if eps <= 0:
        raise UsageError(f"model.norm.eps={eps} must be more than 0.")
    return functools.partial(
        BatchNorm,
        groups=groups,
        interleaved=interleaved,
        momentum=momentum,
        eps=eps,
        unbiased=unbiased,
    )


def missing(**_) -> None:
    """Stands in for the norm, and raises UsageError, if config.model has no norm."""
    raise UsageError(
        "model.norm is missing from the config; configs/common.py has norm(groups)."
    )


class BatchNorm(nn.Module):
    """Normalises every channel of x [B, ..., C]. For the fields, see make_norm.

    Running "mean" and "var", [C] float32, are in the collection batch_stats. Each call
    with train=True updates them once; calls with train=False read them.
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
        """Returns x normalised, with its shape and dtype.

        weights: 1 for positions that count in the statistics and 0 for the others,
            broadcastable to x.shape[:-1]; None counts all. Every position is
            normalised. A group with no position left updates no running statistic.
        Raises UsageError if groups does not divide the batch in training.
        """
        width, shape, dtype = x.shape[-1:], x.shape, x.dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        if train:
            x, axis = grouped(x, self.groups, self.interleaved)
            if weights is None:
                # [G, 1, ..., C], or [1, G, ..., C] if interleaved
                batch = moments(x.astype(jnp.float32), axis)
                count = x.size // width[0] // self.groups
                self.remember(mean, var, *batch, count=count)
            else:
                weights = self.cut(weights, shape)
                *batch, count = weighted_moments(x.astype(jnp.float32), weights, axis)
                self.remember_weighted(mean, var, *batch, count)
        else:
            batch = mean.value, var.value
        factor, shift = jax.lax.rsqrt(batch[1] + self.eps), 0.0
        if self.affine:
            factor = factor * self.param("scale", self.scale_init, width)
            shift = self.param("bias", nn.initializers.zeros, width)
        x = (x.astype(jnp.float32) - batch[0]) * factor + shift
        return x.reshape(shape).astype(dtype)

    def remember(self, mean, var, batch_mean: Array, batch_var: Array, count: int):
        """Updates the running statistics from groups of `count` values each."""
        keep, width = self.momentum, batch_mean.shape[-1]
        new = jnp.stack([batch_mean, batch_var]).reshape(2, -1, width)  # [2, G, C]
        new = (1 - keep) * new.mean(axis=1)
        factor = count / (count - 1) if self.unbiased else 1.0
        mean.value = keep * mean.value + new[0]
        var.value = keep * var.value + factor * new[1]

    def cut(self, weights: Array, shape: tuple[int, ...]) -> Array:
        """Broadcasts weights to x [B, ..., C] of `shape`, and groups them like x."""
        weights = jnp.broadcast_to(weights, shape[:-1]).astype(jnp.float32)[..., None]
        groups, each = self.groups, shape[0] // self.groups
        split = (each, groups) if self.interleaved else (groups, each)
        return weights.reshape(*split, *weights.shape[1:])

    def remember_weighted(self, mean, var, batch_mean, batch_var, count: Array):
        """Like remember, for groups with `count` positions each, possibly zero."""
        keep, width = self.momentum, batch_mean.shape[-1]
        count = count.reshape(-1, 1)  # [G, 1]
        factor = count / jnp.maximum(count - 1, 1) if self.unbiased else 1.0
        new = batch_mean.reshape(-1, width), factor * batch_var.reshape(-1, width)
        nonempty = (count > 0).astype(jnp.float32)  # [G, 1]
        for running, values in zip((mean, var), new, strict=True):
            average = (nonempty * values).sum(axis=0)  # [C]
            average = average / jnp.maximum(nonempty.sum(), 1)
            updated = keep * running.value + (1 - keep) * average
            running.value = jnp.where(nonempty.any(), updated, running.value)


def grouped(x: Array, groups: int, interleaved: bool) -> tuple[Array, int]:
    """Splits the batch axis in two; also returns the axis (0 or 1) of the groups.

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
    """Mean and biased variance over all axes except the groups' and the last.

    Two passes: E[x^2] - E[x]^2 would cancel catastrophically where the mean is large.
    """
    axes = tuple(a for a in range(x.ndim - 1) if a != group_axis)
    mean = x.mean(axis=axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axis=axes, keepdims=True)


def weighted_moments(
    x: Array, weights: Array, group_axis: int
) -> tuple[Array, Array, Array]:
    """Moments over the positions of weight 1, and their number in each group.

    weights: shaped like x, but with a last axis of 1. The mean and variance of a group
    without such positions are 0.
    """
    axes = tuple(a for a in range(x.ndim - 1) if a != group_axis)
    count = weights.sum(axis=axes, keepdims=True)
    share = weights / jnp.maximum(count, 1)
    mean = (share * x).sum(axis=axes, keepdims=True)
    variance = (share * jnp.square(x - mean)).sum(axis=axes, keepdims=True)
    return mean, variance, count
