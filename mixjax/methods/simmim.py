"""SimMIM: a simple framework for masked image modeling (Xie et al., CVPR 2022).

    M    = square cells of each image, ceil(ratio * cells) hidden            section 3.2
    z    = encoder(patch embeddings, the mask token where M hides)          section 3.1
    y    = one linear layer from z to the pixels of each place              section 3.3
    loss = sum |y - x| over hidden pixels / (their number + 1e-5) / channels    eq. 1

x is the encoder's input: normalised by the data set's mean and deviation, not patch by
patch.

Departures: none known from the official code, for Swin and for ViT (models/beit.py).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.mixtures import tokens
from mixjax.objectives import pixels
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array


class Settings(NamedTuple):
    """The network and what the configuration says, as the functions below use it."""

    network: Network
    patch: int  # side of an input token in pixels
    grid: tuple[int, int]  # rows, columns of tokens
    cell: int  # side of a cell in tokens
    mask_ratio: float


def draw_cells(settings: Settings, rng: Array, index: Array) -> Array:
    """What the encoder sees: kept [B, 1, L], 1 = seen, 0 = hidden; index [B]."""
    keys = example_keys(rng, index)
    return tokens.cell_masking(
        keys, settings.grid, settings.cell, settings.mask_ratio, views=1
    )


def part_inputs(kept: Array) -> dict:
    """The inputs of the network's parts for N views of each image; kept [B, N, L].

    The patches are embedded once, then repeated for all views.
    """
    views = kept.shape[1]
    hidden = 1.0 - kept.reshape(-1, kept.shape[2])  # [B * N, L]
    repeat = lambda x: jnp.repeat(x, views, axis=0) if views > 1 else x
    return {"encoder": {"select": repeat, "hide": hidden}}


def reconstruction_loss(prediction: Array, images: Array, kept: Array, patch: int):
    """Equation 1, each view over the whole batch, averaged over views; a scalar.

    prediction [B * N, H, W, C]; images [B, H, W, C]; kept [B, N, L], of input tokens.
    """
    b, n, _ = kept.shape
    h, w, c = images.shape[1:]
    hidden = tokens.of_pixels(1.0 - kept, (h, w), patch)  # [B, N, H, W, 1]
    error = jnp.abs(prediction.reshape(b, n, h, w, c) - images[:, None])
    error_sum = (error * hidden).sum(axis=(0, 2, 3, 4))  # [N]
    # 1e-5 is the official code's guard against a mask that hides nothing.
    per_view = error_sum / (hidden.sum((0, 2, 3, 4)) + 1e-5)
    return per_view.mean() / c


def panels(images: Array, prediction: Array, kept: Array, patch: int) -> dict:
    """{caption: images} of one view; prediction [B, H, W, C], kept [B, L]."""
    prediction = pixels.patchify(prediction, patch)  # [B, L, P]
    return pixels.panels(images, prediction, kept, patch, norm_pix=False)


def init(settings: Settings, rng, batch) -> Variables:
    kept = draw_cells(settings, rng, batch["index"])
    params, stats = settings.network.init(rng, batch["views"][0], **part_inputs(kept))
    return Variables(params, stats, teacher={}, memory={})


def loss(settings: Settings, params, state, batch, rng):
    images = batch["views"][0]
    kept = draw_cells(settings, rng, batch["index"])
    outputs, stats = settings.network.apply(
        params, state.stats, images, train=True, rng=rng, **part_inputs(kept)
    )
    value = reconstruction_loss(outputs["prediction"], images, kept, settings.patch)
    return value, Aux(stats, carry={}, metrics={})


def show(settings: Settings, state, batch, rng) -> dict:
    images = batch["views"][0]
    kept = draw_cells(settings, rng, batch["index"])
    outputs, _ = settings.network.apply(
        state.params, state.stats, images, train=False, **part_inputs(kept)
    )
    return panels(images, outputs["prediction"], kept[:, 0], settings.patch)


def make(network: Network, *, mask_ratio: float, mask_patch: int) -> Method:
    """SimMIM; mask_ratio: of the cells; mask_patch: the side of a cell in pixels."""
    settings = Settings(
        network=network,
        patch=network.geometry.patch,
        grid=network.geometry.grid,
        cell=tokens.count_cell_side(mask_patch, network.geometry.patch),
        mask_ratio=mask_ratio,
    )
    return Method(
        init=partial(init, settings),
        loss=partial(loss, settings),
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=partial(show, settings),
        together=1,  # every image has its own loss
    )
