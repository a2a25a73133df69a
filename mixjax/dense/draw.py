"""Classes, boxes and masks drawn over normalised images, as array operations."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
IGNORED = 255
SHARE = 0.55  # of the colour in what is tinted
EDGE = 1.5  # pixels from a box's side to the end of its line
MEAN, STD = 0.45, 0.225  # of natural images, about: what colours are normalised with


def palette(count: int) -> np.ndarray:
    """[count, 3] float32 colours that differ, in units of normalised images."""
    golden = (5**0.5 - 1) / 2  # hues as far apart as they can be, however many
    hues = [(i * golden) % 1 for i in range(count)]
    tones = [
        colorsys.hsv_to_rgb(h, 0.9, 1 - 0.15 * (i % 3)) for i, h in enumerate(hues)
    ]
    return (np.array(tones, np.float32).reshape(count, 3) - MEAN) / STD


def tint(images: Array, colours: Array, where: Array) -> Array:
    """Images [B, H, W, C] mixed with colours of that shape where bool [B, H, W, 1]."""
    return jnp.where(where, (1 - SHARE) * images + SHARE * colours, images)


def classes_over(images: Array, classes: Array) -> Array:
    """Images [B, H, W, 3] tinted by classes [B, h, w], resized by repetition.

    IGNORED leaves a pixel as it is.
    """
    size = (len(images), *images.shape[1:3])
    if classes.shape != size:
        classes = jax.image.resize(classes.astype(jnp.float32), size, "nearest")
    classes = classes.astype(jnp.int32)
    colours = jnp.asarray(palette(IGNORED + 1))[classes]  # [B, H, W, 3]
    return tint(images, colours, (classes != IGNORED)[..., None])


def outline(box: Array, height: int, width: int) -> Array:
    """bool [H, W], the pixels on the four sides of a box."""
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5
    x0, y0, x1, y1 = box
    within = lambda by: (x > x0 - by) & (x < x1 + by) & (y > y0 - by) & (y < y1 + by)
    return within(EDGE) & ~within(-EDGE)


def stencil(probs: Array, box: Array, height: int, width: int) -> Array:
    """bool [H, W] of a mask [S, S] that fills `box`: bilinear, at least one half."""

    def weights(low, high, size):
        at = jnp.arange(size) + 0.5
        at = (at - low) / jnp.maximum(high - low, 1e-6) * len(probs) - 0.5
        near = jnp.abs(at[:, None] - jnp.arange(len(probs))[None])
        return jnp.maximum(0, 1 - near)  # [size, S]

    x0, y0, x1, y1 = box
    rows, columns = weights(y0, y1, height), weights(x0, x1, width)
    return rows @ probs.astype(jnp.float32) @ columns.T >= 0.5


def objects_over(
    images: Array, boxes: Array, classes: Array, valid: Array, masks: Array | None
) -> Array:
    """Images [B, H, W, 3] with boxes [B, N, 4] and masks [B, N, S, S] over them.

    classes [B, N] choose the colours; valid [B, N] the objects to draw.
    """
    height, width = images.shape[1:3]
    colours = jnp.asarray(palette(IGNORED + 1))

    def add(image, one):
        box, number, drawn, *mask = one
        colour = jnp.broadcast_to(colours[number], image.shape)
        if mask:
            inside = stencil(mask[0], box, height, width)[..., None] & drawn
            image = tint(image, colour, inside)
        line = outline(box, height, width)[..., None] & drawn
        return jnp.where(line, colour, image), None

    def over(image, *each):
        return jax.lax.scan(add, image, each)[0]

    each = (boxes, classes, valid) + (() if masks is None else (masks,))
    return jax.vmap(functools.partial(over))(images, *each)
