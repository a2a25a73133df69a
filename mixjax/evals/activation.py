"""Where a residual network is active on ordinary pictures: maps of its last stage.

The mean over channels of the squared last map, in evaluation mode, enlarged bilinearly
and stretched over each picture's own range. Lam ("Leveraging Image Mixtures for
Unsupervised Detection Pre-training") shows maps of the encoder's final layer without
saying how they are made; this is a departure only in that it had to be chosen. Written
to figures/activation_<step>.png and to TensorBoard.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.evals.attention import drawer

Array = jax.Array


def energy(features: Array, height: int, width: int) -> Array:
    """A map [B, h, w, D] -> the mean of its squares, bilinear, [B, height, width]."""
    mean = jnp.square(features.astype(jnp.float32)).mean(axis=-1)  # [B, h, w]
    return jax.image.resize(mean, (len(mean), height, width), "bilinear")


def shower(network) -> Callable:
    """(state, batch, rng) -> {"images", "maps"}, for pictures.painter."""

    def show(state, batch, rng):
        images = batch["views"][0]
        outputs = network.encode(state.params, state.stats, images)
        if "map" not in outputs:
            raise UsageError(
                "evals.activation: model.encoder has no map of its last layer; for "
                "transformers there is evals.attention."
            )
        return {"images": images, "maps": energy(outputs["map"], *images.shape[1:3])}

    return show


def make(*, count: int, sets, network, mesh, workdir: Path) -> Callable | None:
    """The evaluator: maps of `count` held-out (or training) images; 0: none."""
    how = dict(count=count, sets=sets, mesh=mesh, workdir=workdir)
    return drawer("activation", shower(network), **how)
