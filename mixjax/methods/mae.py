"""MAE: masked autoencoders are scalable vision learners (He et al., CVPR 2022).

    ids    keep int(L * (1 - mask_ratio)) random patches of each image
    z    = encoder(patches[ids] + positions)                        figure 1
    y    = decoder(z at its places, mask tokens elsewhere)
    t    = patches, each normalised by its own mean and deviation   table 1d
    loss = mean over hidden patches of mean over pixels (y - t)^2

Departures: none known. The class token is encoded but does not enter the loss;
evaluators read the encoder's `pool` of all patches.
"""

from functools import partial
from typing import NamedTuple

import jax

from mixjax.mixtures import tokens
from mixjax.mixtures.tokens import Masking
from mixjax.objectives import pixels
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array


class Settings(NamedTuple):
    """The network and what the configuration says, as the functions below use it."""

    network: Network
    patch: int  # side of a patch in pixels
    length: int  # L
    visible: int  # V, the patches of an image that the encoder sees
    norm_pix: bool  # whether the targets are normalised patch by patch


def reconstruct(
    network: Network,
    params,
    stats,
    images: Array,
    masking: Masking,
    visible: int,
    **options,
):
    """Encodes the `visible` kept patches and decodes all: (outputs, stats).

    outputs: tokens [B, 1 + V, D] in shuffled order, prediction [B, L, P]. options:
    `train` and `rng` of Network.apply.
    """
    return network.apply(
        params,
        stats,
        images,
        # Positions are already added here, so shuffled tokens still know their places.
        encoder={"select": lambda x: tokens.keep(x, masking, visible)},
        decoder={"restore": lambda x, mask: tokens.unshuffle(x, mask, masking)},
        **options,
    )


def reconstruction_loss(
    prediction: Array, images: Array, patch: int, masking: Masking, norm_pix: bool
) -> Array:
    """The mean squared error over hidden patches; prediction [B, L, P], a scalar."""
    target = pixels.patchify(images, patch)  # [B, L, P]
    if norm_pix:
        target = pixels.normalise(target)
    return pixels.masked_mse(prediction, target, masking.kept)


def draw_masking(settings: Settings, rng: Array, index: Array) -> Masking:
    """Which patches each image keeps; index [B], the examples' numbers."""
    keys = example_keys(rng, index)
    return tokens.random_masking(keys, settings.length, settings.visible)


def init(settings: Settings, rng, batch) -> Variables:
    # Nothing is masked here: the shapes of parameters do not depend on V.
    params, stats = settings.network.init(rng, batch["views"][0])
    return Variables(params, stats, teacher={}, memory={})


def loss(settings: Settings, params, state, batch, rng):
    images = batch["views"][0]
    masking = draw_masking(settings, rng, batch["index"])
    outputs, stats = reconstruct(
        settings.network,
        params,
        state.stats,
        images,
        masking,
        settings.visible,
        train=True,
        rng=rng,
    )
    value = reconstruction_loss(
        outputs["prediction"], images, settings.patch, masking, settings.norm_pix
    )
    return value, Aux(stats, carry={}, metrics={})


def show(settings: Settings, state, batch, rng) -> dict:
    images = batch["views"][0]
    masking = draw_masking(settings, rng, batch["index"])
    outputs, _ = reconstruct(
        settings.network,
        state.params,
        state.stats,
        images,
        masking,
        settings.visible,
        train=False,
    )
    return pixels.panels(
        images, outputs["prediction"], masking.kept, settings.patch, settings.norm_pix
    )


def make(network: Network, *, mask_ratio: float, norm_pix: bool) -> Method:
    """MAE with `mask_ratio` of the patches hidden; norm_pix: normalised targets."""
    grid, patch = network.geometry.grid, network.geometry.patch
    length = grid[0] * grid[1]
    visible = tokens.count_visible(length, mask_ratio)
    settings = Settings(network, patch, length, visible, norm_pix)
    return Method(
        init=partial(init, settings),
        loss=partial(loss, settings),
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=partial(show, settings),
        together=1,  # every image has its own loss
    )
