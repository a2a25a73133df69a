"""Anchors of a region proposal network: fixed boxes at every position of its maps."""

from collections.abc import Sequence

import jax
import numpy as np

from mixjax.errors import UsageError

Array = jax.Array


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Anchors around the origin, [A, 4] float32, each of area size^2.

    ratios: height / width. The order is all ratios of the first size, then of the next.
    """
    size, ratio = (np.ravel(x) for x in np.meshgrid(sizes, ratios, indexing="ij"))
    width = size / np.sqrt(ratio)
    half = np.stack([width, width * ratio], axis=1) / 2  # [A, 2]
    return np.concatenate([-half, half], axis=1).astype(np.float32)


def level_anchors(
    map_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    offset: float,
) -> list[np.ndarray]:
    """The anchors of each map, [h w A, 4] float32, in the order (row, column, anchor).

    map_sizes: (h, w) of each map; sizes: a tuple for each map. Anchors of row or column
    i are centred at (i + offset) * stride; detectron2 takes offset 0, the corner of a
    cell. UsageError unless there is one stride and one tuple of sizes for each map.
    """
    if not len(map_sizes) == len(strides) == len(sizes):
        raise UsageError(
            f"anchors.sizes={tuple(sizes)} with strides={tuple(strides)} must have one "
            f"entry for each of the {len(map_sizes)} maps."
        )
    by_map = []
    for (h, w), stride, size in zip(map_sizes, strides, sizes, strict=True):
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        centre = (np.stack([x, y, x, y], axis=-1) + offset) * stride  # [h, w, 4]
        boxes = centre[:, :, None] + cell_anchors(size, ratios)  # [h, w, A, 4]
        by_map.append(boxes.reshape(-1, 4).astype(np.float32))
    return by_map


def inside(anchors: Array, hw: Array, border: float) -> Array:
    """[N] bool: anchors [N, 4] that extend at most `border` beyond an image of hw [2].

    mmdetection's rule (allowed_border): the limit itself is allowed on the left and at
    the top, but not on the right and at the bottom.
    """
    low = (anchors[:, :2] >= -border).all(axis=1)
    return low & (anchors[:, 2:] < hw[::-1] + border).all(axis=1)
