"""Anchors of a region proposal network: fixed boxes around the places of its maps."""

from collections.abc import Sequence

import jax
import numpy as np

from mixjax.errors import UsageError

Array = jax.Array


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Boxes around the origin, [A, 4] float32: every ratio h / w of the first size,
    then of the next; each covers size^2."""
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

    map_sizes: (h, w) of each map; sizes: for each map a tuple. The anchors of place i
    stand around (i + offset) * stride: detectron2 takes offset 0, a cell's corner.
    UsageError unless there is one stride and one tuple of sizes for each map.
    """
    if not len(map_sizes) == len(strides) == len(sizes):
        raise UsageError(
            f"anchors.sizes={tuple(sizes)} with strides={tuple(strides)} must have one "
            f"entry for each of the {len(map_sizes)} maps."
        )
    found = []
    for (h, w), stride, size in zip(map_sizes, strides, sizes, strict=True):
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        centre = (np.stack([x, y, x, y], axis=-1) + offset) * stride  # [h, w, 4]
        boxes = centre[:, :, None] + cell_anchors(size, ratios)  # [h, w, A, 4]
        found.append(boxes.reshape(-1, 4).astype(np.float32))
    return found


def inside(anchors: Array, hw: Array, border: float) -> Array:
    """[N] bool: which anchors [N, 4] leave an image of hw [2] by at most `border`.

    mmdet's rule (allowed_border): right and bottom edges must stay below the limit.
    """
    low = (anchors[:, :2] >= -border).all(axis=1)
    return low & (anchors[:, 2:] < hw[::-1] + border).all(axis=1)
