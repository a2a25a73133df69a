"""Activation maps of a residual network's last stage on unmixed images.

A map is the mean over channels of the squared activations, in evaluation mode, resized
bilinearly and stretched to each image's own range. Lam ("Leveraging Image Mixtures for
Unsupervised Detection Pre-training") shows maps of the encoder's final layer without
explaining how they are computed, so this definition is ours. Written to
figures/activation_<step>.png and to TensorBoard.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.evals.attention import drawer

Array = jax.Array


def energy(features: Array, height: int, width: int) -> Array:
    """Mean square over channels of a map [B, h, w, D], resized: [B, height, width]."""
    mean = jnp.square(features.astype(jnp.float32)).mean(axis=-1)  # [B, h, w]
    return jax.image.resize(mean, (len(mean), height, width), "bilinear")


def shower(network) -> Callable:
    """(state, batch, rng) -> {"images", "maps"}, for pictures.painter."""

    def show(state, batch, rng):
        images = batch["views"][0]
        outputs = network.encode(state.params, state.stats, images)
        if "map" not in outputs:
            raise UsageError(
                "evals.activation: model.encoder has no map of its last layer; use "
                "evals.attention for transformers."
            )
        return {"images": images, "maps": energy(outputs["map"], *images.shape[1:3])}

    return show


def make(*, count: int, sets, network, mesh, workdir: Path) -> Callable | None:
    """The evaluator: maps of `count` held-out (or training) images; 0: none."""
    show = shower(network)
    return drawer(
        "activation", show, count=count, sets=sets, mesh=mesh, workdir=workdir
    )
