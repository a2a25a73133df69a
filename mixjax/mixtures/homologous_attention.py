"""Homologous attention: which keys a token of a mixed image sees (MixedAE).

Source: Chen et al., CVPR 2023, equation 6. `source` [G, L] is as in homologous.py. What
`choose_keys` returns is a part's `choose`: a layer calls it with its number and its
logits [G, heads, c + L, c + L], c class tokens first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.mixtures.homologous import shown_places

Array = jax.Array
ATTENTION = ("global", "homologous", "masked_sa")
CLASS_KEYS = ("keep", "compete", "drop")
ACCURACY = "topk_accuracy"  # names of notes, which the encoder stacks over its layers
SEEN = "seen"


class TopK(NamedTuple):
    """Homologous attention: the number of keys kept, and the first layer that does."""

    k: int
    start: int
    class_key: str  # see topk_keys


def kth_largest(x: Array, k: int) -> Array:
    """The k-th largest of the last axis, [..., n] -> [..., 1] float32, exactly.

    A binary search over the bits of the answer: with the sign bit handled, floats are
    ordered like integers, so each of the 32 bits from the top is set if at least k
    values are not below the candidate. On a CPU this is several times faster than
    sorting, and on any device it is elementwise work and sums.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    # Negative floats are ordered backwards: flipping all bits but the sign mends that.
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def set_bit(answer, i):
        # Bit 31 is the sign: setting it takes the lowest integer to 0.
        candidate = answer + (1 << i) if i < 31 else jnp.zeros_like(answer)
        enough = (order >= candidate).sum(axis=-1, keepdims=True) >= k
        return jnp.where(enough, candidate, answer)

    answer = jnp.full((*x.shape[:-1], 1), -(2**31), jnp.int32)
    for i in reversed(range(32)):
        answer = set_bit(answer, i)
    return jax.lax.bitcast_convert_type(
        answer ^ ((answer >> 31) & 0x7FFFFFFF), jnp.float32
    )


def topk_keys(logits: Array, k: int, class_key: str, class_tokens: int = 1) -> Array:
    """Equation 6: which keys the TopK leaves to each query, bool like `logits`.

    logits: [..., c + L, c + L]. Class-token queries see everything; a patch query sees
    the keys of its k largest logits (more if several equal the k-th). class_key:
      keep     k patch keys, and the class tokens' in addition;
      compete  k keys, the class tokens' among the candidates;
      drop     k patch keys and no class token.
    """
    check_name("method.topk.class_key", class_key, CLASS_KEYS)
    # A choice has no gradient; the attention's own logits keep theirs.
    logits, c = jax.lax.stop_gradient(logits), class_tokens
    patches = logits[..., c:, c:]  # [..., L, L]
    candidates = logits[..., c:, :] if class_key == "compete" else patches
    kth = kth_largest(candidates, min(k, candidates.shape[-1]))  # [..., L, 1]
    if class_key == "compete":
        kept = candidates >= kth
    else:
        cls = jnp.full((*patches.shape[:-1], c), class_key == "keep")
        kept = jnp.concatenate([cls, patches >= kth], axis=-1)  # [..., L, c + L]
    everything = jnp.ones((*logits.shape[:-2], c, logits.shape[-1]), bool)
    return jnp.concatenate([everything, kept], axis=-2)  # [..., c + L, c + L]


def homologous_keys(source: Array, members: int) -> Array:
    """Masked self-attention: [G, L] -> bool [G, 1, K + L, K + L], K class tokens first.

    A token sees the tokens and the class token of its own image and nothing else. The
    axis of length 1 stands for the heads, which all see the same.
    """
    classes = jnp.broadcast_to(jnp.arange(members), (source.shape[0], members))
    image = jnp.concatenate([classes.astype(source.dtype), source], axis=1)  # [G, K+L]
    return image[:, None, :, None] == image[:, None, None, :]  # [G, 1, K+L, K+L]


def sampling_accuracy(kept: Array, source: Array, class_tokens: int = 1) -> Array:
    """The share of homologous keys among the patch keys that patch queries see.

    kept: bool [G, heads, c + L, c + L]; returns a scalar. Figure 6 of the paper; chance
    is 1 / K.
    """
    kept = kept[..., class_tokens:, class_tokens:]  # [G, heads, L, L]
    same = source[:, None, :, None] == source[:, None, None, :]  # [G, 1, L, L]
    return (kept & same).sum() / kept.sum()


def choose_keys(
    attend: str, source: Array, members: int, topk: TopK | None
) -> Callable | None:
    """Which keys a query sees: (layer, logits) -> (bool, notes), or None for all."""
    if attend == "global":
        return None
    if attend == "masked_sa":
        homologous = homologous_keys(source, members)
        return lambda layer, logits: (homologous, {})

    def choose(layer, logits):
        # Under scan the layer is an array, so every layer does the work of the TopK.
        if isinstance(layer, int) and layer < topk.start:
            everything = jnp.ones((source.shape[0], 1, *logits.shape[2:]), bool)
            return None, {ACCURACY: sampling_accuracy(everything, source)}
        kept = topk_keys(logits, topk.k, topk.class_key)  # [G, heads, 1 + L, 1 + L]
        kept = kept if isinstance(layer, int) else kept | (layer < topk.start)
        return kept, {ACCURACY: sampling_accuracy(kept, source)}

    return choose


def watch_keys(
    choose: Callable, source: Array, grid: tuple[int, int], members: int
) -> Callable:
    """`choose` that also notes SEEN [G, K, L], for pictures.

    For the token nearest to the centre in each image: the share of the heads in which
    it sees each patch key.
    """
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    middle = (grid[0] - 1) / 2, (grid[1] - 1) / 2
    distance = jnp.square(row - middle[0]) + jnp.square(column - middle[1])  # [L]
    shown = shown_places(source, members)  # [G, K, L]
    query = jnp.where(shown, distance, jnp.inf).argmin(axis=-1)  # [G, K]

    def watched(layer, logits):
        kept, notes = choose(layer, logits)
        kept_or_all = jnp.ones_like(logits) if kept is None else kept
        classes = logits.shape[-1] - source.shape[1]
        place = query[:, None, :, None] + classes  # [G, 1, K, 1]
        rows = jnp.take_along_axis(kept_or_all.astype(jnp.float32), place, axis=2)
        share = rows[..., classes:].mean(axis=1)  # [G, heads, K, L] -> [G, K, L]
        return kept, notes | {SEEN: share}

    return watched
