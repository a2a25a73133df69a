"""MAE: masked autoencoders are scalable vision learners (He et al., CVPR 2022).

    ids    keep int(L * (1 - mask_ratio)) random patches of each image
    z    = encoder(patches[ids] + positions)                        figure 1
    y    = decoder(z at its places, mask tokens elsewhere)
    t    = patches, each normalised by its own mean and deviation   table 1d
    loss = mean over hidden patches of mean over pixels (y - t)^2

Departures: none known. The class token is encoded but unused by the loss; what the
evaluators read is the encoder's `pool` over all patches of the image.
"""

import jax

from mixjax.errors import UsageError
from mixjax.mixtures import tokens
from mixjax.objectives import pixels
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array


def make(
    network: Network, *, mask_ratio: float, norm_pix: bool, total_steps: int
) -> Method:
    """MAE with `mask_ratio` of the patches hidden; norm_pix: normalised targets."""
    grid, patch = network.geometry.grid, network.geometry.patch
    length = grid[0] * grid[1]
    visible = int(length * (1 - mask_ratio))  # truncated, as the official code does
    if not 0 < visible < length:
        raise UsageError(
            f"method.mask_ratio={mask_ratio} keeps {visible} of {length} patches; "
            f"it must leave at least one to see and one to predict."
        )

    def init(rng, batch):
        params, stats = network.init(rng, batch["views"][0])
        return Variables(params, stats, teacher={}, memory={})

    def reconstruct(params, stats, images, masking, train, rng=None):
        return network.apply(
            params,
            stats,
            images,
            train=train,
            rng=rng,
            encoder=dict(select=lambda x: tokens.keep(x, masking, visible)),
            decoder=dict(restore=lambda x, m: tokens.unshuffle(x, m, masking)),
        )

    def loss(params, state, batch, rng):
        images = batch["views"][0]
        keys = example_keys(rng, batch["index"])
        masking = tokens.random_masking(keys, length, visible)
        outputs, stats = reconstruct(params, state.stats, images, masking, True, rng)
        target = pixels.patchify(images, patch)
        if norm_pix:
            target = pixels.normalise(target)
        value = pixels.masked_mse(outputs["prediction"], target, masking.kept)
        return value, Aux(stats, carry={}, metrics={})

    def show(state, batch, rng):
        """Panels in the order of the paper's figure 2; pictures in input units."""
        images = batch["views"][0]
        keys = example_keys(rng, batch["index"])
        masking = tokens.random_masking(keys, length, visible)
        outputs, _ = reconstruct(state.params, state.stats, images, masking, False)
        patches, prediction = pixels.patchify(images, patch), outputs["prediction"]
        caption = "reconstruction"
        if norm_pix:
            mean, deviation = pixels.statistics(patches)
            prediction = prediction * deviation + mean
            caption += ", with each patch's true mean and deviation"
        kept = masking.kept[:, :, None]

        def picture(x):
            return pixels.unpatchify(x, grid, patch)

        return {
            "input": images,
            f"kept: {visible} of {length} patches": picture(patches * kept),
            caption: picture(prediction),
            "reconstruction and kept patches": picture(
                patches * kept + prediction * (1 - kept)
            ),
        }

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        divisible=True,
    )
