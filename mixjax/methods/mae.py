"""MAE: masked autoencoders are scalable vision learners (He et al., CVPR 2022).

    ids    keep int(L * (1 - mask_ratio)) random patches of each image
    z    = encoder(patches[ids] + positions)                        figure 1
    y    = decoder(z at its places, mask tokens elsewhere)
    t    = patches, each normalised by its own mean and deviation   table 1d
    loss = mean over hidden patches of mean over pixels (y - t)^2

Departures: none known. The class token is encoded but the loss does not use it; what
evaluators read is the encoder's `pool` of all patches.
"""

import jax

from mixjax.errors import UsageError
from mixjax.mixtures import tokens
from mixjax.mixtures.tokens import Masking
from mixjax.objectives import pixels
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array


def reconstruct(
    network: Network,
    params,
    stats,
    images: Array,
    masking: Masking,
    visible: int,
    **how,
):
    """Encodes the `visible` kept patches, decodes all: (outputs, stats).

    outputs: tokens [B, 1 + V, D] in shuffled order, prediction [B, L, P].
    """
    return network.apply(
        params,
        stats,
        images,
        encoder={"select": lambda x: tokens.keep(x, masking, visible)},
        decoder={"restore": lambda x, mask: tokens.unshuffle(x, mask, masking)},
        **how,
    )


def reconstruction_loss(
    prediction: Array, images: Array, patch: int, masking: Masking, norm_pix: bool
) -> Array:
    """The mean squared error over hidden patches; prediction [B, L, P], a scalar."""
    target = pixels.patchify(images, patch)
    if norm_pix:
        target = pixels.normalise(target)
    return pixels.masked_mse(prediction, target, masking.kept)


def make(network: Network, *, mask_ratio: float, norm_pix: bool) -> Method:
    """MAE with `mask_ratio` of the patches hidden; norm_pix: normalised targets."""
    grid, patch = network.geometry.grid, network.geometry.patch
    length = grid[0] * grid[1]
    visible = int(length * (1 - mask_ratio))  # truncated, as in the official code
    if not 0 < visible < length:
        raise UsageError(
            f"method.mask_ratio={mask_ratio} keeps {visible} of {length} patches; "
            f"it must leave at least one to see and one to predict."
        )

    def init(rng, batch):
        params, stats = network.init(rng, batch["views"][0])
        return Variables(params, stats, teacher={}, memory={})

    def masks(rng, batch):
        return tokens.random_masking(example_keys(rng, batch["index"]), length, visible)

    def loss(params, state, batch, rng):
        images, masking = batch["views"][0], masks(rng, batch)
        outputs, stats = reconstruct(
            network, params, state.stats, images, masking, visible, train=True, rng=rng
        )
        value = reconstruction_loss(
            outputs["prediction"], images, patch, masking, norm_pix
        )
        return value, Aux(stats, carry={}, metrics={})

    def show(state, batch, rng):
        images, masking = batch["views"][0], masks(rng, batch)
        outputs, _ = reconstruct(
            network, state.params, state.stats, images, masking, visible, train=False
        )
        return pixels.panels(
            images, outputs["prediction"], masking.kept, patch, norm_pix
        )

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        together=1,
    )
