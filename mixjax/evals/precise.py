"""Batch statistics of the weights as they are, for evaluations that ask for them.

Running statistics trail the weights. "Precise" ones (Wu and Johnson, "Rethinking
'Batch' in BatchNorm", 2021; fvcore, which detectron2 uses before each test) come from
some training batches that run through the network as it is:

    mean = average of the batches' means
    var  = average of their variances + variance of their means

which are the moments of all of them together. Departures: batches count alike, whatever
their size, and N / (N - 1) of a batch's variance is left in where the norms have it.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np


def precise(
    update: Callable, stats: Mapping, batches: Iterable, keep: float
) -> Mapping:
    """`stats` with the moments of `batches` in place of running ones.

    update: (stats, batch) -> stats after the batch went through in training, such as
    Aux.stats of a method's loss. stats: a tree with a "mean" and a "var" [C] for each
    norm, as whose arrays those of the result lie. keep: what a running statistic keeps
    of itself in that, model.norm.momentum. Batches that do not reach a norm do not
    count for it. ValueError if keep is 1.
    """
    if keep >= 1:
        raise ValueError(f"nothing of a batch is in statistics that keep {keep}")
    put = lambda new, old: jax.device_put(new, old.sharding)
    zeros = jax.tree.map(lambda x: put(np.zeros(x.shape, x.dtype), x), stats)
    found = [jax.device_get(update(zeros, batch)) for batch in batches]
    moments = together(found, jax.device_get(stats), 1 / (1 - keep))
    return jax.tree.map(put, moments, stats)


def together(found: list[Mapping], stats: Mapping, factor: float) -> Mapping:
    """The moments of batches whose own are those of `found`, times `factor`."""
    if set(stats) != {"mean", "var"}:
        return {k: together([f[k] for f in found], v, factor) for k, v in stats.items()}
    mean, var = (
        factor * np.array([f[k] for f in found], np.float64) for k in ("mean", "var")
    )  # [N, C]
    reached = [i for i, values in enumerate(var) if values.any()]
    if not reached:
        return stats
    mean, var = mean[reached], var[reached]
    moments = {"mean": mean.mean(axis=0), "var": var.mean(axis=0) + mean.var(axis=0)}
    return {k: v.astype(np.float32) for k, v in moments.items()}
