"""Boxes: encoding relative to other boxes, areas, and overlaps.

All arithmetic is float32 whatever the inputs: bfloat16 has 8 bits of precision, so that
a coordinate of 1000 would move by pixels.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array

LARGEST = math.log(1000 / 16)  # of a log scale in decode: detectron2's upper bound
SMALLEST = 1e-6  # of a side in encode: padded rows have size 0 and must stay finite
EPS = 1e-7  # in fvcore's generalised IoU


def _centre_form(boxes: Array) -> tuple[Array, Array]:
    """[..., 4] -> centres [..., 2] and sizes [..., 2], float32."""
    boxes = boxes.astype(jnp.float32)
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: Array, reference: Array, weights: Sequence[float]) -> Array:
    """Boxes [..., 4] as deltas (dx, dy, dw, dh) from `reference`, [..., 4] float32.

    weights: a factor for each delta. Girshick et al. (2014), equations 6 to 9.
    """
    (centre, size), (start, unit) = _centre_form(boxes), _centre_form(reference)
    size, unit = jnp.maximum(size, SMALLEST), jnp.maximum(unit, SMALLEST)
    move, scale = (centre - start) / unit, jnp.log(size / unit)
    return jnp.concatenate([move, scale], axis=-1) * jnp.asarray(weights, jnp.float32)


def decode(deltas: Array, reference: Array, weights: Sequence[float]) -> Array:
    """The inverse of encode: boxes [..., 4] float32; leading axes broadcast.

    Scales are limited to at most 1000 / 16, as in detectron2.
    """
    deltas = deltas.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
    start, unit = _centre_form(reference)
    centre = deltas[..., :2] * unit + start
    half = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2:], LARGEST)) * unit
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def area(boxes: Array) -> Array:
    """[..., 4] -> areas [...] float32; 0 where a side is not above 0."""
    size = _centre_form(boxes)[1]
    return jnp.prod(jnp.maximum(size, 0), axis=-1)


def nonempty(boxes: Array) -> Array:
    """[..., 4] -> [...] bool: whether both sides are above 0."""
    return (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)


def clip(boxes: Array, hw: Array) -> Array:
    """Boxes [..., 4] clipped to an image of hw [2] (height, width), float32."""
    limits = jnp.asarray(hw, jnp.float32)[jnp.array([1, 0, 1, 0])]  # w, h, w, h
    return jnp.clip(boxes.astype(jnp.float32), 0, limits)


def overlap(a: Array, b: Array) -> tuple[Array, Array]:
    """Areas of intersection and union, [...] float32; leading axes broadcast."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    return shared, area(a) + area(b) - shared


def iou(a: Array, b: Array, valid_a: Array | bool, valid_b: Array | bool) -> Array:
    """Intersection over union of a [G, 4] with b [N, 4]: [G, N] float32.

    valid_a: [G] bool, valid_b: [N] bool, or True for all. Invalid and empty boxes
    overlap nothing: 0.
    """
    shared, union = overlap(a[:, None], b[None])  # [G, N]
    ok = jnp.broadcast_to(valid_a, len(a))[:, None] & jnp.broadcast_to(valid_b, len(b))
    ok &= shared > 0
    # The inner `where` keeps 0 / 0 out of both value and gradient.
    return jnp.where(ok, shared / jnp.where(ok, union, 1), 0)


def giou(a: Array, b: Array) -> Array:
    """Generalised IoU of pairs, [..., 4] each -> [...] float32 in -1..1.

    IoU - (hull - union) / hull (Rezatofighi et al., 2019, algorithm 1), with fvcore's
    1e-7 in both denominators.
    """
    shared, union = overlap(a, b)
    low = jnp.minimum(a[..., :2], b[..., :2]).astype(jnp.float32)
    high = jnp.maximum(a[..., 2:], b[..., 2:]).astype(jnp.float32)
    # The smallest box around both.
    hull = jnp.prod(high - low, axis=-1)
    return shared / (union + EPS) - (hull - union) / (hull + EPS)
