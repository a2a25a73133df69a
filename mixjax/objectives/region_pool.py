"""Means of a feature map over regions of the image it was made of.

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training"
(section 3.2.1): the map is up-sampled to the image's size with bilinear interpolation
(half-pixel centres, torch's align_corners=False) and averaged over a mask. Up-sampling
is linear, so the mean over a mask is a weighted sum of the places of the map, and the
up-sampled map is never built. Departures: none but that; the numbers are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.sharding import sub_batches

Array = jax.Array


def bilinear(size: int, cells: int) -> np.ndarray:
    """[size, cells] float32: this times a row of `cells` values is it up-sampled.

    Every row sums to 1; beyond the outermost centres the outermost value goes on.
    """
    centre = (np.arange(size) + 0.5) * (cells / size) - 0.5
    centre = centre.clip(0, cells - 1)[:, None]  # [size, 1]
    # Each value fades to nothing over the distance between two centres.
    return np.maximum(0, 1 - abs(centre - np.arange(cells))).astype(np.float32)


def weights(mask: Array, grid: tuple[int, int]) -> Array:
    """mask [G, H, W], not all zero -> the share of each place of a map, [G, h, w].

    Shares sum to 1, so a linear layer may come before or after the mean.
    """
    rows, columns = map(bilinear, mask.shape[1:], grid)
    found = jnp.einsum("gij,ih,jw->ghw", mask, rows, columns, precision="highest")
    return found / mask.sum(axis=(1, 2))[:, None, None]


def region_mean(features: Array, mask: Array) -> Array:
    """The mean of up-sampled maps over the pixels where a mask is 1, float32.

    features: [B, h, w, D]; mask: [G, H, W], one for each G-th part of the batch, of
    zeros and ones and nowhere only zeros. Returns [B, D]. Any sizes will do.
    """
    share = weights(mask, features.shape[1:3])
    x = sub_batches.split(features.astype(jnp.float32), len(mask))  # [G, n, h, w, D]
    x = jnp.einsum("gnhwd,ghw->gnd", x, share, precision="highest")
    return sub_batches.merge(x)  # [B, D]
