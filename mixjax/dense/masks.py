"""Masks of objects: targets of the mask head, crops for them, pasting into images."""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.dense import sampling

Array = jax.Array


def mask_targets(
    crops: Array, gt_boxes: Array, index: Array, boxes: Array, side: int
) -> Array:
    """The object's mask inside each of R boxes: [R, side, side] float32, 0 or 1.

    crops: [M, S, S], the mask of each object inside its box of gt_boxes [M, 4]; index:
    (R,), the object of each box; boxes: [R, 4]. A bin is 1 where the mean of 2 x 2
    bilinear samples is at least 0.5; outside the object's own box the mask is 0.
    """
    cells = crops.shape[-1]
    boxes, truth = (jnp.asarray(x, jnp.float32) for x in (boxes, gt_boxes))
    truth = truth[index]  # [R, 4]
    # From pixels to cells of the crop, whose centres are whole numbers.
    unit = cells / jnp.maximum(truth[:, 2:] - truth[:, :2], 1e-6)
    start = (boxes[:, :2] - truth[:, :2]) * unit - 0.5
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

    Bilinear between pixel centres, antialiased where it shrinks, so that every pixel
    contributes; 1 from 0.5 on. On the host.
    """
    x, y = (_resampling(box[i], box[i + 2], mask.shape[1 - i], size) for i in (0, 1))
    (x, columns), (y, rows) = x, y
    return (y @ mask[rows, columns] @ x.T >= 0.5).astype(np.uint8)


def _resampling(
    low: float, high: float, cells: int, size: int
) -> tuple[np.ndarray, slice]:
    """Weights [size, n] along one axis of a box, and the slice of the n pixels used."""
    step = (high - low) / size
    reach = max(step, 1.0)
    near = slice(max(int(low - reach), 0), min(int(np.ceil(high + reach)), cells))
    centre = low + (np.arange(size) + 0.5) * step  # [size]
    pixel = np.arange(near.start, near.stop) + 0.5
    weight = np.maximum(0, 1 - abs(centre[:, None] - pixel) / reach)  # [size, n]
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-6), near


def paste(probs: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask [height, width] bool of one object in its image. On the host.

    probs: [n, n] in 0..1 inside box (4,). Bilinear at pixel centres, 0 beyond the box,
    1 from 0.5 on, as detectron2's paste_masks_in_image.
    """
    mask = np.zeros((height, width), bool)
    x, columns = _pasting(box[0], box[2], width, probs.shape[1])
    y, rows = _pasting(box[1], box[3], height, probs.shape[0])
    mask[rows, columns] = y @ probs @ x.T >= 0.5
    return mask


def _pasting(
    low: float, high: float, pixels: int, cells: int
) -> tuple[np.ndarray, slice]:
    """Weights [n, cells] along one axis, and the slice of the n pixels in the box."""
    first = min(max(int(np.floor(low)), 0), pixels)
    inside = slice(first, max(min(int(np.ceil(high)), pixels), first))
    pixel = np.arange(inside.start, inside.stop) + 0.5
    at = (pixel - low) / max(high - low, 1e-6) * cells - 0.5  # [n]
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(cells))), inside
