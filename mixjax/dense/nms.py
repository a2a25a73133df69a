"""Non-maximum suppression: of boxes that overlap much, only the best one stays.

The greedy rule is a fixed point: a box stays if no better box that stays overlaps it
too much. Starting from all boxes and applying the rule to all at once, the first k
places are right after k rounds, and in practice all are after a few.
"""

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.dense import ranking

Array = jax.Array

TILE = 512  # boxes that are decided at once in the tiled form
WHOLE = 2048  # the most boxes whose overlaps are held in one matrix


def nms(
    boxes: Array,
    scores: Array,
    group: Array,
    valid: Array,
    *,
    threshold: float,
    count: int,
) -> tuple[Array, Array]:
    """Greedy suppression: index (count,) int32, valid (count,), sorted by score.

    boxes: [N, 4]; scores: (N,); group: (N,) whole numbers, only boxes of the same one
    suppress each other, at IoU above the threshold (not at it); valid: (N,) bool. Of
    equal scores the lower index comes first. Exact; nothing is differentiated.
    """
    given = jax.tree.map(jnp.asarray, (boxes, scores, group, valid))
    boxes, scores, group, valid = jax.lax.stop_gradient(given)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    form = whole if len(scores) <= WHOLE else tiled
    kept = form(boxes[order], group[order], valid[order], threshold)
    kept = jnp.zeros(valid.shape, bool).at[order].set(kept)
    return ranking.top(scores, kept, count)


def whole(boxes: Array, group: Array, valid: Array, threshold: float) -> Array:
    """Which of sorted boxes stay, (N,) bool, with one matrix [N, N]."""
    place = jnp.arange(len(valid))
    over = _over(boxes, group, boxes, group, threshold)
    return _settle(over & (place[:, None] < place), valid)


def tiled(boxes: Array, group: Array, valid: Array, threshold: float) -> Array:
    """As whole, in tiles of 512 boxes one after another: no matrix [N, N]."""
    n = len(valid)
    boxes, group, valid = (
        jnp.pad(x, [(0, -n % TILE)] + [(0, 0)] * (x.ndim - 1))
        for x in (boxes, group, valid)
    )
    place = jnp.arange(len(valid))

    def decide(t, kept):
        at = lambda x: jax.lax.dynamic_slice_in_dim(x, t * TILE, TILE)
        over = _over(boxes, group, at(boxes), at(group), threshold)  # [N, TILE]
        lost = (over & (kept & (place < t * TILE))[:, None]).any(axis=0)
        own = at(over) & (place[:TILE, None] < place[:TILE])
        now = _settle(own, at(valid) & ~lost)
        return jax.lax.dynamic_update_slice_in_dim(kept, now, t * TILE, axis=0)

    return jax.lax.fori_loop(0, len(valid) // TILE, decide, valid)[:n]


def _over(a: Array, group_a: Array, b: Array, group_b: Array, limit: float) -> Array:
    """[N, M] bool: a [N, 4] and b [M, 4] are of one group and overlap too much."""
    shared, union = box_ops.overlap(a[:, None], b[None])
    # No division: a GPU's may round an IoU at the threshold to one above it.
    return (shared > limit * union) & (group_a[:, None] == group_b)


def _settle(over: Array, valid: Array) -> Array:
    """The fixed point; over: [N, N] bool, a better box (row) hits a worse one."""

    def apply(state):
        kept, _ = state
        new = valid & ~(over & kept[:, None]).any(axis=0)
        return new, (new != kept).any()

    return jax.lax.while_loop(lambda state: state[1], apply, (valid, valid.any()))[0]
