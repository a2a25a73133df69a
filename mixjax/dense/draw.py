"""Draws classes, boxes and masks over normalised images, as array operations."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
IGNORED = 255
SHARE = 0.55  # of the colour in tinted pixels
EDGE = 1.5  # half the width of a box's outline, in pixels
MEAN, STD = 0.45, 0.225  # of ImageNet, roughly: colours are normalised like images


def palette(count: int) -> np.ndarray:
    """[count, 3] float32 distinct colours, in units of normalised images."""
    # Multiples of the golden ratio spread hues evenly, whatever their number.
    golden = (5**0.5 - 1) / 2
    hues = [(i * golden) % 1 for i in range(count)]
    tones = [
        colorsys.hsv_to_rgb(h, 0.9, 1 - 0.15 * (i % 3)) for i, h in enumerate(hues)
    ]
    return (np.array(tones, np.float32).reshape(count, 3) - MEAN) / STD


def tint(images: Array, colours: Array, where: Array) -> Array:
    """Blends images [.., H, W, C] with colours of that shape where [.., H, W, 1]."""
    return jnp.where(where, (1 - SHARE) * images + SHARE * colours, images)


def classes_over(images: Array, classes: Array) -> Array:
    """Tints images [B, H, W, 3] by classes [B, h, w], resized to nearest neighbours.

    Pixels of class IGNORED keep their colour.
    """
    size = (len(images), *images.shape[1:3])
    if classes.shape != size:
        classes = jax.image.resize(classes.astype(jnp.float32), size, "nearest")
    classes = classes.astype(jnp.int32)
    colours = jnp.asarray(palette(IGNORED + 1))[classes]  # [B, H, W, 3]
    return tint(images, colours, (classes != IGNORED)[..., None])


def outline(box: Array, height: int, width: int) -> Array:
    """bool [H, W], the pixels on the outline of a box."""
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5
    x0, y0, x1, y1 = box
    grown = lambda by: (x > x0 - by) & (x < x1 + by) & (y > y0 - by) & (y < y1 + by)
    return grown(EDGE) & ~grown(-EDGE)


def stencil(probs: Array, box: Array, height: int, width: int) -> Array:
    """bool [H, W]: where a mask [S, S], resized to `box`, is at least 0.5."""

    def weights(low, high, size):
        at = jnp.arange(size) + 0.5
        at = (at - low) / jnp.maximum(high - low, 1e-6) * len(probs) - 0.5
        distance = jnp.abs(at[:, None] - jnp.arange(len(probs))[None])
        return jnp.maximum(0, 1 - distance)  # [size, S]

    x0, y0, x1, y1 = box
    rows, columns = weights(y0, y1, height), weights(x0, x1, width)
    return rows @ probs.astype(jnp.float32) @ columns.T >= 0.5


def objects_over(
    images: Array, boxes: Array, classes: Array, valid: Array, masks: Array | None
) -> Array:
    """Draws boxes [B, N, 4] and masks [B, N, S, S] over images [B, H, W, 3].

    classes: [B, N], which choose the colours; valid: [B, N] bool, which to draw.
    """
    height, width = images.shape[1:3]
    colours = jnp.asarray(palette(IGNORED + 1))

    def add(image, drawing):
        box, label, drawn, *mask = drawing
        colour = jnp.broadcast_to(colours[label], image.shape)
        if mask:
            inside = stencil(mask[0], box, height, width)[..., None] & drawn
            image = tint(image, colour, inside)
        line = outline(box, height, width)[..., None] & drawn
        return jnp.where(line, colour, image), None

    def add_all(image, *drawings):
        # One after another, so that later objects lie over earlier ones.
        return jax.lax.scan(add, image, drawings)[0]

    drawings = (boxes, classes, valid) + (() if masks is None else (masks,))
    return jax.vmap(add_all)(images, *drawings)
