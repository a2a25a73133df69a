"""Features of all examples of a data set, each exactly once."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np

from mixjax.data import Data
from mixjax.sharding import meshes


def embedder(features: Callable, data: Data, mesh) -> Callable:
    """Jits (state, batch, resident) -> features [B, D], labels [B], valid [B].

    features: (state, images [B, H, W, C]) -> [B, D]. The results are replicated, so
    that every process can fetch them whole.
    """

    def embed(state, batch, resident):
        # A fixed key, so that evaluations of the same state agree.
        augmented = data.augment(batch, resident, jax.random.key(0))
        return features(state, augmented["views"][0]), batch["label"], batch["valid"]

    return jax.jit(embed, out_shardings=meshes.replicated(mesh))


def extract(embed: Callable, data: Data, state, check: Callable):
    """Embeds all readable examples: (features [N, D], labels [N]) as NumPy arrays.

    embed: from embedder. The last batch is padded, and the padding is dropped.
    `check` is called before each batch and may raise.
    """
    all_features, all_labels = [], []
    with contextlib.closing(data.sweep()) as batches:
        for batch in batches:
            check()
            outputs = jax.device_get(embed(state, batch, data.resident))
            features, labels, valid = outputs
            all_features.append(features[valid])
            all_labels.append(labels[valid])
    return np.concatenate(all_features), np.concatenate(all_labels)
