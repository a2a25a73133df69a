"""Non-maximum suppression (NMS): of boxes that overlap much, only the best is kept.

The greedy algorithm computes a fixed point: a box is kept if no better box that is kept
overlaps it too much. Applied to all boxes at once, starting with all of them kept, this
rule has decided the first k boxes correctly after k rounds, and in practice all boxes
after a few.
"""

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_ops
from mixjax.dense import ranking

Array = jax.Array

TILE = 512  # boxes that the tiled form decides at once
WHOLE = 2048  # up to this many boxes, all overlaps are held in one matrix


def nms(
    boxes: Array,
    scores: Array,
    group: Array,
    valid: Array,
    *,
    threshold: float,
    count: int,
) -> tuple[Array, Array]:
    """Greedy NMS: (index (count,) int32, valid (count,) bool), sorted by score.

    boxes: [N, 4]; scores: (N,); group: (N,) int, such as the class: only boxes of the
    same group suppress each other, at an IoU strictly above the threshold; valid: (N,)
    bool. Of equal scores the lower index comes first. Exact; no gradient.
    """
    arrays = jax.tree.map(jnp.asarray, (boxes, scores, group, valid))
    boxes, scores, group, valid = jax.lax.stop_gradient(arrays)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    form = whole if len(scores) <= WHOLE else tiled
    kept = form(boxes[order], group[order], valid[order], threshold)
    kept = jnp.zeros(valid.shape, bool).at[order].set(kept)
    return ranking.top(scores, kept, count)


def whole(boxes: Array, group: Array, valid: Array, threshold: float) -> Array:
    """Which of N sorted boxes are kept, (N,) bool, by one matrix of overlaps [N, N]."""
    place = jnp.arange(len(valid))
    over = _over(boxes, group, boxes, group, threshold)
    return _settle(over & (place[:, None] < place), valid)


def tiled(boxes: Array, group: Array, valid: Array, threshold: float) -> Array:
    """Like whole, but decides TILE boxes after another: no matrix [N, N]."""
    n = len(valid)
    boxes, group, valid = (
        jnp.pad(x, [(0, -n % TILE)] + [(0, 0)] * (x.ndim - 1))
        for x in (boxes, group, valid)
    )
    place = jnp.arange(len(valid))

    def decide(t, kept):
        at = lambda x: jax.lax.dynamic_slice_in_dim(x, t * TILE, TILE)
        over = _over(boxes, group, at(boxes), at(group), threshold)  # [N, TILE]
        # Suppressed by boxes of earlier tiles, which are final.
        lost = (over & (kept & (place < t * TILE))[:, None]).any(axis=0)
        within = at(over) & (place[:TILE, None] < place[:TILE])  # [TILE, TILE]
        tile_kept = _settle(within, at(valid) & ~lost)
        return jax.lax.dynamic_update_slice_in_dim(kept, tile_kept, t * TILE, axis=0)

    return jax.lax.fori_loop(0, len(valid) // TILE, decide, valid)[:n]


def _over(a: Array, group_a: Array, b: Array, group_b: Array, limit: float) -> Array:
    """[N, M] bool: whether a [N, 4] and b [M, 4] share a group and overlap too much."""
    shared, union = box_ops.overlap(a[:, None], b[None])
    # No division: on a GPU it may round an IoU at the threshold to one above it.
    return (shared > limit * union) & (group_a[:, None] == group_b)


def _settle(over: Array, valid: Array) -> Array:
    """The fixed point, (N,) bool: which boxes are kept.

    over: [N, N] bool, whether a better box (row) overlaps a worse one (column).
    """

    def apply(state):
        kept, _ = state
        new = valid & ~(over & kept[:, None]).any(axis=0)
        return new, (new != kept).any()

    return jax.lax.while_loop(lambda state: state[1], apply, (valid, valid.any()))[0]
