"""Features of every example of a data set, once each."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np

from mixjax.data import Data
from mixjax.sharding import meshes


def embedder(features: Callable, data: Data, mesh) -> Callable:
    """Jits (state, batch, resident) -> features [B, D], labels [B], valid [B].

    All three are the same on every device, so any process can fetch them.
    """

    def embed(state, batch, resident):
        seen = data.augment(batch, resident, jax.random.key(0))
        return features(state, seen["views"][0]), batch["label"], batch["valid"]

    return jax.jit(embed, out_shardings=meshes.replicated(mesh))


def extract(embed: Callable, data: Data, state, check: Callable):
    """Runs all examples through: (features [N, D], labels [N]) as NumPy arrays.

    The last batch is padded and the padding dropped, so exactly the readable examples
    are there. `check` is called between batches and may raise.
    """
    features, labels = [], []
    with contextlib.closing(data.sweep()) as batches:
        for batch in batches:
            check()
            found, label, valid = jax.device_get(embed(state, batch, data.resident))
            features.append(found[valid])
            labels.append(label[valid])
    return np.concatenate(features), np.concatenate(labels)
