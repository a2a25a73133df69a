"""Masks of objects: targets of the mask head, crops from the host, and pasting back."""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.dense import sampling

Array = jax.Array


def mask_targets(
    crops: Array, gt_boxes: Array, index: Array, boxes: Array, side: int
) -> Array:
    """What each of R boxes shows of its object: [R, side, side] float32, 0 or 1.

    crops: [M, S, S], each ground truth's mask inside its box gt_boxes [M, 4]; index:
    (R,) which of them; boxes: [R, 4]. A bin is 1 where the mean of 2 x 2 linear samples
    is at least a half; outside the ground truth's box there is nothing.
    """
    cells = crops.shape[-1]
    boxes, own = (jnp.asarray(x, jnp.float32) for x in (boxes, gt_boxes))
    own = own[index]  # [R, 4]
    unit = cells / jnp.maximum(own[:, 2:] - own[:, :2], 1e-6)
    start = (boxes[:, :2] - own[:, :2]) * unit - 0.5
    size = (boxes[:, 2:] - boxes[:, :2]) * unit
    x, y = (
        sampling.axis_weights(
            start[:, axis], size[:, axis], cells, side=side, samples=2, reach=0.5
        )
        for axis in (0, 1)
    )
    crops = jnp.asarray(crops)[index].astype(jnp.float32)  # [R, S, S]
    mean = jnp.einsum("rih,rhw,rjw->rij", y, crops, x, precision="highest")
    return jax.lax.stop_gradient((mean >= 0.5).astype(jnp.float32))


def crop_mask(mask: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The part of a mask [H, W] bool inside a box (4,), as [size, size] uint8, 0 or 1.

    Linear interpolation between pixel centres, widened where it shrinks so that every
    pixel counts; 1 from a half on. On the host.
    """
    x, y = (_resampling(box[i], box[i + 2], mask.shape[1 - i], size) for i in (0, 1))
    (x, columns), (y, rows) = x, y
    return (y @ mask[rows, columns] @ x.T >= 0.5).astype(np.uint8)


def _resampling(
    low: float, high: float, cells: int, size: int
) -> tuple[np.ndarray, slice]:
    """Weights [size, n] for one axis of a box of the n pixels in a slice of it."""
    step = (high - low) / size
    reach = max(step, 1.0)
    near = slice(max(int(low - reach), 0), min(int(np.ceil(high + reach)), cells))
    centre = low + (np.arange(size) + 0.5) * step  # [size]
    pixel = np.arange(near.start, near.stop) + 0.5
    weight = np.maximum(0, 1 - abs(centre[:, None] - pixel) / reach)  # [size, n]
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-6), near


def paste(probs: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask [height, width] bool of one object in its image. On the host.

    probs: [n, n] in 0..1 inside box (4,). Linear at pixel centres, nothing beyond the
    box, 1 from a half on (detectron2's rule).
    """
    mask = np.zeros((height, width), bool)
    x, columns = _pasting(box[0], box[2], width, probs.shape[1])
    y, rows = _pasting(box[1], box[3], height, probs.shape[0])
    mask[rows, columns] = y @ probs @ x.T >= 0.5
    return mask


def _pasting(
    low: float, high: float, pixels: int, cells: int
) -> tuple[np.ndarray, slice]:
    """Weights [n, cells] of one axis for the n pixels of a slice, those in the box."""
    first = min(max(int(np.floor(low)), 0), pixels)
    near = slice(first, max(min(int(np.ceil(high)), pixels), first))
    pixel = np.arange(near.start, near.stop) + 0.5
    at = (pixel - low) / max(high - low, 1e-6) * cells - 0.5  # [n]
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(cells))), near
