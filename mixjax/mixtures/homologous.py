"""Homologous mixing: the images of a group share one mixed image (MixedAE).

Source: Chen et al., CVPR 2023, equations 1 and 2. `source` [G, L] int32 is, for each
place of a mixed image, the number of the image of the group that it shows, from 0 to
K - 1; tokens of the same source are homologous. All functions on arrays are pure and
may be jitted.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.mixtures.tokens import cells, of_pixels, spread

Array = jax.Array
LEFTOVER = ("random_image", "split")


# --- the source of each place --------------------------------------------------------


def random_sources(
    keys: Array, grid: tuple[int, int], cell: int, members: int, leftover: str
) -> Array:
    """Deals the places of each mixed image to its `members` images: [G, L] int32.

    keys: [G]. Each square cell of cell x cell tokens goes to one image; all images get
    the same number of cells, at random places. Cells that are left over (49 = 7 x 7
    cells are not a multiple of 2, 4 or 8) go, by `leftover`:
      random_image  whole, to different images drawn at random;
      split         token by token, in turn, starting with an image drawn at random.
    UsageError if the cells do not tile the grid or are fewer than the images.
    """
    check_name("method.leftover", leftover, LEFTOVER)
    shape = cells(grid, cell)
    count = shape[0] * shape[1]
    per_image, spare = divmod(count, members)
    if not per_image:
        raise UsageError(f"{count} cells are too few for groups of {members} images.")
    equal = jnp.repeat(jnp.arange(members, dtype=jnp.int32), per_image)

    def deal(key):
        cell_key, turn_key = jax.random.split(key)
        turns = jax.random.permutation(turn_key, members).astype(jnp.int32)
        # The number K marks a spare cell until its tokens are dealt below.
        spares = (
            turns[:spare] if leftover == "random_image" else jnp.full(spare, members)
        )
        owner = jax.random.permutation(cell_key, jnp.concatenate([equal, spares]))
        owner = spread(owner, shape, cell)  # [cells] -> [L]
        if leftover == "random_image" or not spare:
            return owner
        is_spare = owner == members
        # Spare tokens are numbered 0, 1, ... and dealt in turn.
        dealt = turns[(jnp.cumsum(is_spare) - 1) % members]
        return jnp.where(is_spare, dealt, owner)

    return jax.vmap(deal)(keys)


def rotations(source: Array, members: int) -> Array:
    """The sources of all K mixed images that a group can give: [G, L] -> [G, K, L].

    Mixed image t shows image (source + t) mod K, so every token of every image is seen
    exactly once over the K mixed images.
    """
    turns = jnp.arange(members, dtype=source.dtype)[None, :, None]  # [1, K, 1]
    return (source[:, None] + turns) % members  # [G, K, L]


def shown_places(source: Array, members: int) -> Array:
    """Whether a place shows the given image: [G, L] -> bool [G, K, L]."""
    return source[:, None] == jnp.arange(members)[None, :, None]


# --- mixing and unmixing -------------------------------------------------------------


def mix(x: Array, source: Array) -> Array:
    """Equation 1: x [G, K, L, D], source [G, L] -> [G, L, D].

    A sum of K selections instead of a gather, whose gradient would be a scatter: that
    of a selection is a selection as well.
    """
    picked = [
        jnp.where((source == i)[..., None], x[:, i], 0) for i in range(x.shape[1])
    ]
    return sum(picked[1:], picked[0])


def mix_images(images: Array, source: Array, patch: int) -> Array:
    """`mix` on pixels: images [G, K, H, W, C], source [G, L] -> [G, H, W, C].

    The patch embedding acts on each patch alone and mixing keeps every patch in its
    place, so mixing first gives the same tokens for 1 / K of the embedding's work.
    """
    owner = of_pixels(source, images.shape[2:4], patch)[..., 0]  # [G, H, W]
    return mix(images, owner)  # [G, H, W, C]


def unmix(x: Array, source: Array, fill: Array, members: int) -> Array:
    """Equation 2: mixed x [G, L, D] -> [G, K, L, D], each image's tokens at their
    places and `fill` [1, 1, D] everywhere else.
    """
    shown = shown_places(source, members)  # [G, K, L]
    return jnp.where(shown[..., None], x[:, None], fill[:, None])


def unmix_sequence(x: Array, source: Array, fill: Array, members: int) -> Array:
    """`unmix` of a sequence with class tokens: [G, c + L, D] -> [G * K, 1 + L, D].

    c = 1: every image gets the one class token; c = K: each image has its own.
    """
    c = x.shape[1] - source.shape[1]
    cls = jnp.broadcast_to(x[:, :c], (x.shape[0], members, x.shape[2]))  # [G, K, D]
    tokens = unmix(x[:, c:], source, fill, members)  # [G, K, L, D]
    whole = jnp.concatenate([cls[:, :, None], tokens], axis=2)  # [G, K, 1 + L, D]
    return whole.reshape(-1, *whole.shape[2:])


# --- groups and pictures -------------------------------------------------------------


def count_members(share: float) -> int:
    """K, the number of images of a group; UsageError if `share` is not 1 / K."""
    members = round(1 / share) if share > 0 else 0
    if members < 2 or not np.isclose(members * share, 1.0):
        raise UsageError(f"method.r={share} is not 1/K; 0.5, 0.25 and 0.125 are.")
    return members


def paint(source: Array, patch: int, like: Array) -> Array:
    """Sources as colours, for pictures: [G, L] -> [G, H, W, C].

    like: [G, H, W, C], the images to tint. Their pixels are normalised, so the colours
    range from -1.5 to 1.5, about as far as the pixels do.
    """
    channels = like.shape[-1]
    count = 8  # colours: one for each image of the largest group of the paper
    # Steps of 3 around the circle of 8 hues set neighbouring numbers far apart.
    hue = 2 * np.pi * (np.arange(count)[:, None] * 3 % count) / count
    colours = 1.5 * np.cos(hue - 2 * np.pi * np.arange(channels) / max(channels, 3))
    owners = of_pixels(source, like.shape[1:3], patch)[..., 0]  # [G, H, W]
    return jnp.asarray(colours, like.dtype)[owners % count]
