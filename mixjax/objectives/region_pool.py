"""Means of a feature map over regions of its image.

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training"
(section 3.2.1): the map is up-sampled to the image's size with bilinear interpolation
(half-pixel centres, torch's align_corners=False) and averaged over a mask. Up-sampling
is linear, so the mean over a mask is a weighted sum of the cells of the map, and the
up-sampled map is never built. The numbers are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.sharding import sub_batches

Array = jax.Array


def bilinear(size: int, cells: int) -> np.ndarray:
    """The matrix [size, cells] that up-samples `cells` values to `size`, float32.

    Every row sums to 1; beyond the outermost centres the outermost value continues.
    """
    centre = (np.arange(size) + 0.5) * (cells / size) - 0.5
    centre = centre.clip(0, cells - 1)[:, None]  # [size, 1]
    # The weight of a value falls linearly to 0 at the neighbouring centre.
    return np.maximum(0, 1 - abs(centre - np.arange(cells))).astype(np.float32)


def weights(mask: Array, grid: tuple[int, int]) -> Array:
    """The share of each cell of a map in the mean over a mask: [G, H, W] -> [G, h, w].

    No mask may be all zero. The shares sum to 1, so that a linear layer may come
    before or after the mean.
    """
    rows, columns = map(bilinear, mask.shape[1:], grid)  # [H, h], [W, w]
    shares = jnp.einsum("gij,ih,jw->ghw", mask, rows, columns, precision="highest")
    return shares / mask.sum(axis=(1, 2))[:, None, None]


def region_mean(features: Array, mask: Array) -> Array:
    """The mean of up-sampled maps over the pixels where a mask is 1, float32.

    features: [B, h, w, D]; mask: [G, H, W] of zeros and ones, one for each of G
    consecutive groups of the batch, none of them all zero. Returns [B, D].
    """
    share = weights(mask, features.shape[1:3])
    x = sub_batches.split(features.astype(jnp.float32), len(mask))  # [G, n, h, w, D]
    x = jnp.einsum("gnhwd,ghw->gnd", x, share, precision="highest")
    return sub_batches.merge(x)  # [B, D]
