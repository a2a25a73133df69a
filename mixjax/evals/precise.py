"""Precise batch statistics: recomputed for the current weights before an evaluation.

Running statistics lag behind the weights. Precise ones (Wu and Johnson, "Rethinking
'Batch' in BatchNorm", 2021; as in fvcore, which detectron2 uses before each test) are
computed from training batches with the weights fixed:

    mean = average of the batches' means
    var  = average of their variances + variance of their means

which are the moments of all batches together. Departures: all batches have the same
weight, whatever their size, and if the norms apply N / (N - 1) to a batch's variance,
it is not undone.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np


def precise(
    update: Callable, stats: Mapping, batches: Iterable, keep: float
) -> Mapping:
    """`stats` with the moments of `batches` in place of running statistics.

    update: (stats, batch) -> stats after a training step's forward pass, such as
    Aux.stats of a method's loss. stats: a tree with "mean" and "var", [C] each, for
    every norm; the result has its sharding. keep: the share of the old value that a
    running statistic keeps in an update, model.norm.momentum. Batches that do not reach
    a norm do not count for it. ValueError if keep is 1.
    """
    if keep >= 1:
        raise ValueError(
            f"statistics that keep {keep} of themselves learn nothing of a batch"
        )
    put = lambda new, old: jax.device_put(new, old.sharding)
    # Starting from zero, an update leaves (1 - keep) times the batch's own moments.
    zeros = jax.tree.map(lambda x: put(np.zeros(x.shape, x.dtype), x), stats)
    by_batch = [jax.device_get(update(zeros, batch)) for batch in batches]
    moments = pool_moments(by_batch, jax.device_get(stats), 1 / (1 - keep))
    return jax.tree.map(put, moments, stats)


def pool_moments(by_batch: list[Mapping], stats: Mapping, factor: float) -> Mapping:
    """The moments of all batches together.

    by_batch: for each batch a tree like `stats` with its moments divided by `factor`.
    A norm that no batch reached keeps its entry of `stats`.
    """
    if set(stats) != {"mean", "var"}:
        return {
            k: pool_moments([moments[k] for moments in by_batch], v, factor)
            for k, v in stats.items()
        }
    mean, var = (
        factor * np.array([moments[k] for moments in by_batch], np.float64)
        for k in ("mean", "var")
    )  # [N, C]
    # A norm that a batch did not reach still has the zeros that it started from.
    reached = [i for i, values in enumerate(var) if values.any()]
    if not reached:
        return stats
    mean, var = mean[reached], var[reached]
    moments = {"mean": mean.mean(axis=0), "var": var.mean(axis=0) + mean.var(axis=0)}
    return {k: v.astype(np.float32) for k, v in moments.items()}
