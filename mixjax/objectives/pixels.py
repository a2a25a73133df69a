"""The pixels of patches as targets: cutting, normalising, comparing.

Source: MAE (He et al., 2022, section 3 "Reconstruction target"). The P numbers of a
patch are in the order (row, column, channel), and patches are in raster order.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
EPSILON = 1e-6  # on the variance, as in the official code


def patchify(images: Array, patch: int) -> Array:
    """[B, H, W, C] -> [B, L, P] with P = patch * patch * C."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, rows, columns, patch, patch, C]
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(x: Array, grid: tuple[int, int], patch: int) -> Array:
    """[B, L, P] -> [B, H, W, C], the inverse of patchify."""
    rows, columns = grid
    x = x.reshape(x.shape[0], rows, columns, patch, patch, -1)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, rows, patch, columns, patch, C]
    return x.reshape(x.shape[0], rows * patch, columns * patch, -1)


def statistics(patches: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each patch, [B, L, P] -> two [B, L, 1].

    Over all pixels and channels jointly, with the unbiased variance (division by
    P - 1) and epsilon inside the square root, as the official code has it.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + EPSILON)


def normalise(patches: Array) -> Array:
    """Scales each patch to mean 0 and deviation 1; constant patches become 0."""
    mean, deviation = statistics(patches)
    return (patches - mean) / deviation


def masked_mse(prediction: Array, target: Array, kept: Array) -> Array:
    """The mean squared error over the hidden patches, all weighed equally; a scalar.

    prediction, target: [B, L, P]; kept: [B, L], 1 = kept (no loss), 0 = hidden.
    """
    error = jnp.square(prediction - target).mean(axis=-1)  # [B, L]
    hidden = 1.0 - kept
    return (error * hidden).sum() / hidden.sum()


def panels(
    images: Array, prediction: Array, kept: Array, patch: int, norm_pix: bool
) -> dict[str, Array]:
    """{caption: images [B, H, W, C]}: the input, its visible part and the prediction.

    images: [B, H, W, C]; prediction: [B, L, P], of normalised patches if norm_pix;
    kept: [B, L], 1 = the encoder saw the patch.
    """
    grid = images.shape[1] // patch, images.shape[2] // patch
    patches, kept = patchify(images, patch), kept[:, :, None]  # [B, L, P], [B, L, 1]
    caption = "reconstruction"
    if norm_pix:
        # A prediction of normalised patches lacks their means and deviations, without
        # which it is no picture; those of the true patches are put back.
        mean, deviation = statistics(patches)
        prediction = prediction * deviation + mean
        caption += ", with each patch's true mean and deviation"
    shown = {
        "input": patches,
        "kept patches": patches * kept,
        caption: prediction,
        "reconstruction and kept patches": patches * kept + prediction * (1 - kept),
    }
    return {k: unpatchify(x, grid, patch) for k, x in shown.items()}
