"""SimMIM: a simple framework for masked image modeling (Xie et al., CVPR 2022).

    M    = square cells of each image, ceil(ratio * cells) hidden            section 3.2
    z    = encoder(patch embeddings, the mask token where M hides)          section 3.1
    y    = one linear layer from z to the pixels of each place              section 3.3
    loss = sum |y - x| over hidden pixels / (their number + 1e-5) / channels    eq. 1

x is the image as the encoder gets it, normalised by the data set's mean and deviation
and not patch by patch.

Departures: none known from the official code, for Swin and for ViT (models/beit.py).
"""

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.mixtures import tokens
from mixjax.objectives import pixels
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array


def inputs(kept: Array) -> dict:
    """What the encoder is given to see N views of each image; kept [B, N, L].

    Patches are embedded once for all views.
    """
    views = kept.shape[1]
    hidden = 1.0 - kept.reshape(-1, kept.shape[2])  # [B * N, L]
    repeat = lambda x: jnp.repeat(x, views, axis=0) if views > 1 else x
    return {"encoder": {"select": repeat, "hide": hidden}}


def reconstruction_loss(prediction: Array, images: Array, kept: Array, patch: int):
    """Equation 1, each view over the whole batch, averaged over views; a scalar.

    prediction: [B * N, H, W, C]; images [B, H, W, C]; kept [B, N, L], of input tokens.
    """
    b, n, _ = kept.shape
    h, w, c = images.shape[1:]
    hidden = tokens.of_pixels(1.0 - kept, (h, w), patch)  # [B, N, H, W, 1]
    error = jnp.abs(prediction.reshape(b, n, h, w, c) - images[:, None])
    each = (error * hidden).sum(axis=(0, 2, 3, 4)) / (hidden.sum((0, 2, 3, 4)) + 1e-5)
    return each.mean() / c


def cell_of(network: Network, mask_patch: int) -> int:
    """The side of a cell in tokens; UsageError if it is not a whole number."""
    patch = network.geometry.patch
    if mask_patch % patch:
        raise UsageError(
            f"method.mask_patch={mask_patch} is not a multiple of "
            f"model.encoder.patch={patch}."
        )
    return mask_patch // patch


def make(network: Network, *, mask_ratio: float, mask_patch: int) -> Method:
    """SimMIM; mask_patch: the side of a cell in pixels."""
    grid, patch = network.geometry.grid, network.geometry.patch
    cell = cell_of(network, mask_patch)

    def masks(rng, index):
        keys = example_keys(rng, index)
        return tokens.cell_masking(keys, grid, cell, mask_ratio, views=1)

    def init(rng, batch):
        kept = masks(rng, batch["index"])
        params, stats = network.init(rng, batch["views"][0], **inputs(kept))
        return Variables(params, stats, teacher={}, memory={})

    def loss(params, state, batch, rng):
        images, kept = batch["views"][0], masks(rng, batch["index"])
        outputs, stats = network.apply(
            params, state.stats, images, train=True, rng=rng, **inputs(kept)
        )
        value = reconstruction_loss(outputs["prediction"], images, kept, patch)
        return value, Aux(stats, carry={}, metrics={})

    def show(state, batch, rng):
        images, kept = batch["views"][0], masks(rng, batch["index"])
        outputs, _ = network.apply(
            state.params, state.stats, images, train=False, **inputs(kept)
        )
        return panels(images, outputs["prediction"], kept[:, 0], patch)

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        together=1,
    )


def panels(images: Array, prediction: Array, kept: Array, patch: int) -> dict:
    """{caption: images} of one view; kept [B, L]."""
    return pixels.panels(images, pixels.patchify(prediction, patch), kept, patch, False)
