"""RoIAlign: what feature maps show inside boxes, on a grid of fixed size.

He et al., "Mask R-CNN" (2017), section 3, with detectron2's half-pixel shift
("aligned") and a fixed number of samples per bin. Between the outermost pixel centres
and one pixel beyond them a sample takes the edge pixel; further out it is 0.
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
    """The level k, of stride 2^k, that a box is pooled from: [..., 4] -> [...] int32.

    floor(4 + log2(sqrt(area) / 224)), clamped to lowest..highest (Lin et al., "Feature
    Pyramid Networks", 2017, equation 1).
    """
    # Areas against powers of two: no logarithm that rounds across a border.
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
    """Regions [B, R, side, side, C] in the maps' dtype.

    maps: of [B, h, w, C] at `strides` pixels; boxes: [B, R, 4] in pixels; level:
    [B, R] int, each box' place in `maps`. A bin is the mean of samples x samples
    points. Boxes get no gradient; sums are float32, also those of the maps' gradient.
    """
    sizes = np.array([m.shape[1:3] for m in maps])
    table = [m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps]
    table = jnp.concatenate(table, axis=1)  # [B, cells, C]
    first = np.cumsum(np.append(0, sizes.prod(axis=1)))[:-1]

    def one(table, boxes, level):
        boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
        stride = jnp.asarray(strides, jnp.float32)[level]
        h, w = jnp.asarray(sizes)[level].T
        rows = _taps(boxes[:, 1], boxes[:, 3], stride, h, side, samples)
        columns = _taps(boxes[:, 0], boxes[:, 2], stride, w, side, samples)
        start = jnp.asarray(first)[level]
        row = start[:, None, None] + rows[0] * w[:, None, None]  # [R, side, taps]
        return _pool(table, (row, columns[0]), (rows[1], columns[1]))

    # Per image: a gather over the whole batch would move maps between devices.
    return jax.vmap(one)(table, boxes, level)


def _taps(low, high, stride, cells, side, samples):
    """Cells that one axis of R boxes reads: index and weight, [R, side, 2 samples]."""
    start, size = low / stride - 0.5, (high - low) / stride
    at = sampling.points(start, size, side * samples)
    at, counts = sampling.held(at, cells[:, None], 1.0)
    near = jnp.floor(at).astype(jnp.int32)
    far = jnp.minimum(near + 1, cells[:, None] - 1)
    share = at - near
    index = jnp.stack([near, far], axis=-1)
    weight = jnp.stack([1 - share, share], axis=-1) * counts[..., None] / samples
    return tuple(x.reshape(len(low), side, 2 * samples) for x in (index, weight))


def _terms(index, weight):
    """Pairs of a cell and its weight for each bin, [R, side, side] each."""
    (row, column), (y, x) = index, weight
    for a, b in itertools.product(range(row.shape[2]), range(column.shape[2])):
        cell = row[:, :, None, a] + column[:, None, :, b]
        yield cell, (y[:, :, None, a] * x[:, None, :, b])[..., None]


# The sum's own gradient rule: cells are added up in place, in float32, one term after
# another; derived, each term would make a table of its own, and all would be held.
@jax.custom_vjp
def _pool(table: Array, index: tuple, weight: tuple) -> Array:
    """[cells, C] -> [R, side, side, C]: weighted sums of cells."""
    total = sum(w * table[cell] for cell, w in _terms(index, weight))
    return total.astype(table.dtype)


def _forward(table, index, weight):
    return _pool(table, index, weight), (table[:, :0], index, weight)


def _backward(kept, cotangent):
    like, index, weight = kept
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
    """The same on one map [h, w, C], as two products: [R, side, side, C] float32.

    boxes: [R, 4]. Every box reads every cell: for small maps, and to check by.
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
