"""RoIAlign: pools feature maps inside boxes to a grid of fixed size.

He et al., "Mask R-CNN" (2017), section 3, with detectron2's half-pixel shift
("aligned") and a fixed number of samples per bin. A sample up to one pixel beyond the
outermost pixel centres takes the value of the edge; further out it is 0.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.dense import boxes as box_ops
from mixjax.dense import sampling

Array = jax.Array


def levels(boxes: Array, *, lowest: int, highest: int) -> Array:
    """The pyramid level k, of stride 2^k, to pool a box from: [..., 4] -> [...] int32.

    floor(4 + log2(sqrt(area) / 224)), clamped to lowest..highest (Lin et al., "Feature
    Pyramid Networks", 2017, equation 1).
    """
    # Compares areas with powers of two: a logarithm could round across a border.
    steps = 4.0 ** (np.arange(lowest + 1, highest + 1) - 4) * 224**2
    area = box_ops.area(boxes)[..., None]
    return lowest + (area >= steps.astype(np.float32)).sum(axis=-1, dtype=jnp.int32)


def roi_align(
    maps: Sequence[Array],
    strides: Sequence[int],
    boxes: Array,
    level: Array,
    *,
    side: int,
    samples: int,
) -> Array:
    """Pools each box from its map: [B, R, side, side, C] in the maps' dtype.

    maps: [B, h, w, C] each, with the given strides in pixels; boxes: [B, R, 4] in
    pixels; level: [B, R] int, the index in `maps` for each box. A bin is the mean of
    samples x samples bilinear samples. Boxes get no gradient; sums are float32, also
    in the gradient of the maps.
    """
    # All maps in one table of cells, so that a gather can read any level.
    sizes = np.array([m.shape[1:3] for m in maps])
    table = [m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps]
    table = jnp.concatenate(table, axis=1)  # [B, cells, C]
    first = np.cumsum(np.append(0, sizes.prod(axis=1)))[:-1]

    def pool_image(table, boxes, level):
        boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
        stride = jnp.asarray(strides, jnp.float32)[level]
        h, w = jnp.asarray(sizes)[level].T
        rows = _taps(boxes[:, 1], boxes[:, 3], stride, h, side, samples)
        columns = _taps(boxes[:, 0], boxes[:, 2], stride, w, side, samples)
        start = jnp.asarray(first)[level]
        row = start[:, None, None] + rows[0] * w[:, None, None]  # [R, side, taps]
        return _pool(table, (row, columns[0]), (rows[1], columns[1]))

    # Image by image: a gather over the batch would move maps between devices.
    return jax.vmap(pool_image)(table, boxes, level)


def _taps(low, high, stride, cells, side, samples):
    """The cells that R boxes read along an axis: (index, weight), [R, side, 2 samples].

    Each sample reads the two cells around it.
    """
    start, size = low / stride - 0.5, (high - low) / stride
    at = sampling.points(start, size, side * samples)
    at, counts = sampling.clamp(at, cells[:, None], 1.0)
    near = jnp.floor(at).astype(jnp.int32)
    far = jnp.minimum(near + 1, cells[:, None] - 1)
    share = at - near
    index = jnp.stack([near, far], axis=-1)
    weight = jnp.stack([1 - share, share], axis=-1) * counts[..., None] / samples
    return tuple(x.reshape(len(low), side, 2 * samples) for x in (index, weight))


def _terms(index, weight):
    """Yields (cell [R, side, side], weight [R, side, side, 1]) for each pair of taps.

    The weight of a cell is the product of those of its row and its column.
    """
    (row, column), (y, x) = index, weight
    for a, b in itertools.product(range(row.shape[2]), range(column.shape[2])):
        cell = row[:, :, None, a] + column[:, None, :, b]
        yield cell, (y[:, :, None, a] * x[:, None, :, b])[..., None]


# A gradient rule by hand: it adds the terms one after another into one float32 table.
# Automatic differentiation would make a table for each term and hold them all.
@jax.custom_vjp
def _pool(table: Array, index: tuple, weight: tuple) -> Array:
    """Weighted sums of the cells of a table [cells, C]: [R, side, side, C]."""
    total = sum(w * table[cell] for cell, w in _terms(index, weight))
    return total.astype(table.dtype)


def _forward(table, index, weight):
    # An empty slice carries the table's length and dtype without keeping its values.
    return _pool(table, index, weight), (table[:, :0], index, weight)


def _backward(residuals, cotangent):
    like, index, weight = residuals
    cotangent = cotangent.astype(jnp.float32)
    total = jnp.zeros((len(like), cotangent.shape[-1]), jnp.float32)
    terms = zip(*_terms(index, weight), strict=True)
    terms = tuple(jnp.stack(x) for x in terms)
    add = lambda total, term: (total.at[term[0]].add(term[1] * cotangent), None)
    total, _ = jax.lax.scan(add, total, terms)
    return total.astype(like.dtype), None, None


_pool.defvjp(_forward, _backward)


def roi_align_dense(
    feature: Array, stride: int, boxes: Array, *, side: int, samples: int
) -> Array:
    """RoIAlign of one map [h, w, C] as matrix products: [R, side, side, C] float32.

    boxes: [R, 4]. Every box reads every cell, which suits small maps and tests.
    """
    start = boxes.astype(jnp.float32) / stride - 0.5
    size = start[:, 2:] - start[:, :2]
    y, x = (
        sampling.axis_weights(
            start[:, axis], size[:, axis], cells, side=side, samples=samples, reach=1.0
        )
        for axis, cells in ((1, feature.shape[0]), (0, feature.shape[1]))
    )
    feature = feature.astype(jnp.float32)
    return jnp.einsum("rih,hwc,rjw->rijc", y, feature, x, precision="highest")
