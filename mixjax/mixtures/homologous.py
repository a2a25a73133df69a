"""Homologous mixing: the patches of a group of images share one picture (MixedAE).

Source: Chen et al., CVPR 2023, equations 1, 2 and 6. `source` [G, L] int32 says for
each place which of the K images of the group it shows, counted from 0; tokens of one
source are homologous. Everything here is a pure array function and may be jitted.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.mixtures.tokens import cells, of_pixels, spread

Array = jax.Array
LEFTOVER = ("random_image", "split")
CLASS_KEYS = ("keep", "compete", "drop")


# --- who owns which place ----------------------------------------------------------


def random_sources(
    keys: Array, grid: tuple[int, int], cell: int, members: int, leftover: str
) -> Array:
    """Deals the places of each group's picture to its `members` images: [G, L] int32.

    keys: [G]. Square cells of cell x cell tokens go to one image each, equally many to
    all, which image gets which at random. Cells that are left over (7 x 7 cells do
    not divide by 2, 4 or 8) go, by `leftover`:
      random_image  whole, to different images drawn at random;
      split         token by token, in turn, from an image drawn at random.
    UsageError if the cells do not tile the grid or an image would get none.
    """
    check_name("method.leftover", leftover, LEFTOVER)
    shape = cells(grid, cell)
    count = shape[0] * shape[1]
    each, spare = divmod(count, members)
    if not each:
        raise UsageError(f"{count} cells are too few for groups of {members} images.")
    equal = jnp.repeat(jnp.arange(members, dtype=jnp.int32), each)

    def deal(key):
        order, turn = jax.random.split(key)
        turn = jax.random.permutation(turn, members).astype(jnp.int32)
        # `members` marks what is left over until it is dealt token by token below.
        rest = turn[:spare] if leftover == "random_image" else jnp.full(spare, members)
        owner = jax.random.permutation(order, jnp.concatenate([equal, rest]))
        owner = spread(owner, shape, cell)  # [L]
        if leftover == "random_image" or not spare:
            return owner
        left = owner == members
        return jnp.where(left, turn[(jnp.cumsum(left) - 1) % members], owner)

    return jax.vmap(deal)(keys)


def rotations(source: Array, members: int) -> Array:
    """All pictures that the group gives, not one: [G, L] -> [G, K, L].

    Picture t shows image (source + t) mod K, so every token of every image is seen
    exactly once over the K pictures.
    """
    turns = jnp.arange(members, dtype=source.dtype)[None, :, None]
    return (source[:, None] + turns) % members  # [G, K, L]


# --- mixing and unmixing -------------------------------------------------------------


def mix(x: Array, source: Array) -> Array:
    """Equation 1: x [G, K, L, D], source [G, L] -> [G, L, D].

    A sum of K selections, not a gather: its gradient is a selection as well.
    """
    picked = [
        jnp.where((source == i)[..., None], x[:, i], 0) for i in range(x.shape[1])
    ]
    return sum(picked[1:], picked[0])


def mix_images(images: Array, source: Array, patch: int) -> Array:
    """`mix` on pixels: images [G, K, H, W, C], source [G, L] -> [G, H, W, C].

    Patch embedding acts on each patch alone and mixing keeps every patch at its place,
    so mixing before it is the same as mixing after, at 1 / K of the work.
    """
    owner = of_pixels(source, images.shape[2:4], patch)[..., 0]
    return mix(images, owner)  # [G, H, W, C]


def unmix(x: Array, source: Array, fill: Array, members: int) -> Array:
    """Equation 2: mixed x [G, L, D] -> [G, K, L, D], each image's tokens at their
    places and `fill` [1, 1, D] at all others.
    """
    own = source[:, None] == jnp.arange(members)[None, :, None]  # [G, K, L]
    return jnp.where(own[..., None], x[:, None], fill[:, None])


def unmix_sequence(x: Array, source: Array, fill: Array, members: int) -> Array:
    """`unmix` of a sequence with class tokens: [G, c + L, D] -> [G * K, 1 + L, D].

    c = 1: the one class token goes to every image; c = K: each image has its own.
    """
    c = x.shape[1] - source.shape[1]
    cls = jnp.broadcast_to(x[:, :c], (x.shape[0], members, x.shape[2]))
    tokens = unmix(x[:, c:], source, fill, members)
    whole = jnp.concatenate([cls[:, :, None], tokens], axis=2)  # [G, K, 1 + L, D]
    return whole.reshape(-1, *whole.shape[2:])


# --- attention -----------------------------------------------------------------------


def kth_largest(x: Array, k: int) -> Array:
    """The k-th largest of the last axis, [..., n] -> [..., 1] float32, exactly.

    Bit by bit: floats, their sign bit handled, are ordered like whole numbers, and 32
    times it is counted how many are at least a candidate. On a CPU this is several
    times faster than sorting, and everywhere it is elementwise work and sums.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    # Negative floats count downward: turning their other bits over orders all.
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def bit(found, i):
        candidate = found + (1 << i) if i < 31 else jnp.zeros_like(found)
        enough = (order >= candidate).sum(axis=-1, keepdims=True) >= k
        return jnp.where(enough, candidate, found)

    found = jnp.full((*x.shape[:-1], 1), -(2**31), jnp.int32)
    for i in reversed(range(32)):
        found = bit(found, i)
    return jax.lax.bitcast_convert_type(
        found ^ ((found >> 31) & 0x7FFFFFFF), jnp.float32
    )


def topk_keys(logits: Array, k: int, class_key: str, class_tokens: int = 1) -> Array:
    """Equation 6: which keys the TopK leaves to each query, bool like `logits`.

    logits: [..., c + L, c + L]. Class-token queries see everything; a patch query sees
    the k largest of its logits (more where several are equal to the last). class_key:
      keep     k patch keys, and the class tokens' in addition;
      compete  k keys, the class tokens' among the candidates;
      drop     k patch keys and no class token.
    """
    check_name("method.topk.class_key", class_key, CLASS_KEYS)
    logits, c = jax.lax.stop_gradient(logits), class_tokens
    patches = logits[..., c:, c:]
    rivals = logits[..., c:, :] if class_key == "compete" else patches
    kth = kth_largest(rivals, min(k, rivals.shape[-1]))  # [..., L, 1]
    if class_key == "compete":
        kept = rivals >= kth
    else:
        cls = jnp.full((*patches.shape[:-1], c), class_key == "keep")
        kept = jnp.concatenate([cls, patches >= kth], axis=-1)
    everything = jnp.ones((*logits.shape[:-2], c, logits.shape[-1]), bool)
    return jnp.concatenate([everything, kept], axis=-2)


def homologous_keys(source: Array, members: int) -> Array:
    """Masked self-attention: [G, L] -> bool [G, 1, K + L, K + L], K class tokens first.

    A token sees the tokens and the class token of its own image and nothing else.
    """
    own = jnp.broadcast_to(jnp.arange(members), (source.shape[0], members))
    whose = jnp.concatenate([own.astype(source.dtype), source], axis=1)
    return whose[:, None, :, None] == whose[:, None, None, :]  # [G, 1, K+L, K+L]


def sampling_accuracy(kept: Array, source: Array, class_tokens: int = 1) -> Array:
    """Of the patch keys that patch queries see, the share that is homologous: a scalar.

    kept: bool [G, heads, c + L, c + L]. Figure 6 of the paper; chance is 1 / K.
    """
    kept = kept[..., class_tokens:, class_tokens:]
    same = source[:, None, :, None] == source[:, None, None, :]
    return (kept & same).sum() / kept.sum()


def members_of(share: float) -> int:
    """How many members a mixture of `share` each has; UsageError if it is not 1 / K."""
    members = round(1 / share) if share > 0 else 0
    if members < 2 or not np.isclose(members * share, 1.0):
        raise UsageError(f"method.r={share} is not 1/K; 0.5, 0.25 and 0.125 are.")
    return members


def paint(source: Array, patch: int, like: Array) -> Array:
    """The owners as colours, [G, L] -> [G, H, W, C], to be looked at.

    like: [G, H, W, C] of normalised pixels, so colours go from -1.5 to 1.5.
    """
    channels = like.shape[-1]
    members = 8  # so many colours
    turn = 2 * np.pi * (np.arange(members)[:, None] * 3 % members) / members
    colours = 1.5 * np.cos(turn - 2 * np.pi * np.arange(channels) / max(channels, 3))
    owners = of_pixels(source, like.shape[1:3], patch)[..., 0]
    return jnp.asarray(colours, like.dtype)[owners % members]
