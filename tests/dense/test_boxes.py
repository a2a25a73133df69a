"""Boxes, matching, sampling, suppression and proposals: the usual mistakes."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.dense import anchors, boxes, matching, nms, ranking
from mixjax.dense.proposals import proposals
from mixjax.errors import UsageError

few = settings(max_examples=8, deadline=None)
UNIT = (1.0, 1.0, 1.0, 1.0)
encode, decode, iou = map(jax.jit, (boxes.encode, boxes.decode, boxes.iou))
giou, clip = jax.jit(boxes.giou), jax.jit(boxes.clip)
sample = jax.jit(matching.sample, static_argnames=("count", "fraction"))
weigh = jax.jit(matching.sample_weights, static_argnames=("count", "fraction"))


def drawn_boxes(seed, n, *, most=40):
    """n boxes with whole coordinates, so that every area is exact."""
    rng = np.random.default_rng(seed)
    start, size = rng.integers(0, most, (n, 2)), rng.integers(0, most // 2, (n, 2))
    return np.concatenate([start, start + size], axis=1).astype(np.float32)


# --- anchors and boxes -------------------------------------------------------------


def test_anchors_go_by_row_column_size_ratio():
    (found,) = anchors.level_anchors([(2, 3)], [8], [(16, 32)], (0.25, 4.0), 0.5)
    assert found.shape == (2 * 3 * 4, 4) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], [4 - 16, 4 - 4, 4 + 16, 4 + 4])
    np.testing.assert_array_equal(found[2], [4 - 32, 4 - 8, 4 + 32, 4 + 8])
    np.testing.assert_array_equal(found[4] - found[0], [8, 0, 8, 0])
    np.testing.assert_array_equal(found[12] - found[0], [0, 8, 0, 8])


def test_anchors_need_sizes_for_each_map():
    with pytest.raises(UsageError, match="anchors.sizes=.* 2 maps"):
        anchors.level_anchors([(2, 2), (1, 1)], [8, 16], [(16,)], (1.0,), 0.0)


def test_anchors_inside():
    hw = jnp.array([20.0, 30.0])
    given = [[0, 0, 29, 19], [-1, 0, 9, 9], [0, 0, 30, 9], [0, 11, 9, 20]]
    given = jnp.array(given, jnp.float32)
    assert anchors.inside(given, hw, 0.0).tolist() == [True, False, False, False]
    assert anchors.inside(given, hw, 2.0).tolist() == [True] * 4


@few
@given(st.integers(0, 10**6))
def test_decode_inverts_encode(seed):
    box, reference = drawn_boxes(seed, 6), drawn_boxes(seed + 1, 6)
    box[:, 2:] += 1
    reference[:, 2:] += 1
    code = (10.0, 20.0, 5.0, 3.0)
    back = decode(encode(box, reference, code), reference, code)
    kept = (box[:, 2:] - box[:, :2]) / (reference[:, 2:] - reference[:, :2]) < 62
    np.testing.assert_allclose(back[kept.all(1)], box[kept.all(1)], atol=1e-3)


def test_decoding_is_float32():
    """In bfloat16 the right edge would be 1024, not 1020."""
    reference = jnp.array([[0.0, 0.0, 1020.0, 510.0]])
    found = decode(jnp.zeros((1, 4), jnp.bfloat16), reference, UNIT)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, reference)
    deltas = jnp.array([[0.7, 0.3, 0.1, 0.2]], jnp.bfloat16)
    whole = deltas.astype(jnp.float32)
    found, whole = (decode(x, reference, (10, 10, 5, 5)) for x in (deltas, whole))
    np.testing.assert_array_equal(found, whole)
    small = [x.astype(jnp.bfloat16) for x in (reference, reference / 2)]
    assert iou(*small, True, True).dtype == jnp.float32
    assert encode(*small, UNIT).dtype == jnp.float32
    assert giou(*small).dtype == clip(small[0], (9, 9)).dtype == jnp.float32


def test_padding_stays_finite_in_the_code():
    zero = jnp.zeros((1, 4))
    box = jnp.array([[3.0, 4.0, 50.0, 60.0]])
    for pair in ((zero, zero), (box, zero), (zero, box)):
        assert np.isfinite(encode(*pair, UNIT)).all()


def test_iou_of_nothing_is_zero():
    a = jnp.array([[0, 0, 4, 4], [2, 2, 2, 2], [0, 0, 0, 0], [5, 5, 1, 1]], jnp.float32)
    found = iou(a, a, True, True)
    np.testing.assert_array_equal(found, np.diag([1, 0, 0, 0]))
    one = jnp.array([True, False])
    same = jnp.tile(a[:1], (2, 1))
    np.testing.assert_array_equal(iou(same, same, one, True), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(iou(same, same, True, one), [[1, 0], [1, 0]])


def test_giou_of_boxes_apart():
    a, b = jnp.array([0.0, 0, 1, 1]), jnp.array([3.0, 0, 4, 1])
    np.testing.assert_allclose(giou(a, b), -0.5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda a: giou(a, b))(a)).all()
    np.testing.assert_allclose(giou(a, a), 1, atol=1e-6)


def test_clip_takes_height_first():
    found = clip(jnp.array([[-5.0, -5, 500, 500]]), jnp.array([20, 30]))
    np.testing.assert_array_equal(found, [[0, 0, 30, 20]])
    assert boxes.nonempty(jnp.array([[0, 0, 1, 0.0], [0, 0, 1, 1]])).tolist() == [0, 1]


# --- matching ----------------------------------------------------------------------

RPN = {"thresholds": (0.3, 0.7), "low_quality": True}
OVERLAPS = np.array([[0.7, 0.29, 0.3, 0, 0.1], [0, 0.5, 0.5, 0.1, 0]], np.float32)


def matched(iou, **changes):
    given = RPN | {"valid_gt": np.ones(len(iou), bool), "inside": True} | changes
    index, label = jax.jit(lambda x: matching.match(x, **given))(iou)
    return index.tolist(), label.tolist()


def test_thresholds_and_ties():
    """At the upper one positive, at the lower one ignored; both best boxes count."""
    index, label = matched(OVERLAPS)
    assert (index, label) == ([0, 1, 1, 1, 0], [1, 1, 1, 0, 0])
    assert matched(OVERLAPS, low_quality=False)[1] == [1, -1, -1, 0, 0]
    assert matched(OVERLAPS, low_quality=0.5)[1] == [1, 1, 1, 0, 0]
    assert matched(OVERLAPS, low_quality=0.51)[1] == [1, -1, -1, 0, 0]
    both = {"thresholds": (0.5, 0.5), "low_quality": False}
    assert matched(OVERLAPS, **both)[1] == [1, 1, 1, 0, 0]


def test_padded_ground_truth_changes_nothing():
    """Trap 5: a row of zeros equals its own maximum everywhere."""
    gt, every = drawn_boxes(0, 5) + np.float32([0, 0, 1, 1]), drawn_boxes(1, 60)

    def run(gt, valid):
        overlap = boxes.iou(gt, every, valid, True)
        return matching.match(overlap, **RPN, valid_gt=valid, inside=True)

    run = jax.jit(run)
    expected = run(gt, np.ones(5, bool))
    rows = np.concatenate([gt, np.tile(gt[:1], (50, 1)), np.zeros((45, 4))])
    found = run(rows.astype(np.float32), np.arange(100) < 5)
    np.testing.assert_array_equal(found, expected)
    assert 0 < (expected[1] == 1).sum() < 30
    # The same from overlaps in which padding has values of its own.
    noisy = np.concatenate(
        [np.asarray(iou(gt, every, True, True)), OVERLAPS[:1].repeat(12, axis=1)]
    )
    again = matched(noisy, valid_gt=np.arange(6) < 5)
    np.testing.assert_array_equal(again, expected)


def test_ground_truth_without_overlap_takes_no_box():
    assert matched(np.zeros((2, 3), np.float32)) == ([0, 0, 0], [0, 0, 0])


def test_boxes_outside_take_no_part():
    """Neither as positives nor as the best of a ground truth."""
    inside = np.array([True, False, True, True, False])
    assert matched(OVERLAPS, inside=inside)[1] == [1, -1, 1, 0, -1]
    assert matched(OVERLAPS[:1], inside=inside & (np.arange(5) > 0))[1][2] == 1


def test_matching_in_a_batch():
    both = np.stack([OVERLAPS, OVERLAPS[::-1]])
    run = lambda x: matching.match(x, **RPN, valid_gt=np.ones(2, bool), inside=True)
    index, label = jax.jit(jax.vmap(run))(both)
    assert index.tolist() == [[0, 1, 1, 1, 0], [1, 0, 0, 0, 1]]
    assert label.tolist() == [[1, 1, 1, 0, 0]] * 2


def test_thresholds_must_rise():
    with pytest.raises(UsageError, match="thresholds=.* must rise"):
        matched(OVERLAPS, thresholds=(0.7, 0.3))


# --- sampling ----------------------------------------------------------------------

BOX = {"count": 512, "fraction": 0.25}


def draws(label, n, **how):
    keys = jax.random.split(jax.random.key(0), n)
    return jax.jit(jax.vmap(lambda k: matching.sample(k, label, **how)))(keys)


def test_sampling_is_uniform():
    """Trap 7: 40 positives of 40, and 472 of 2000 negatives, each with 0.236."""
    label = np.zeros(2100, np.int32)
    label[50:90], label[1000:1060] = 1, -1
    n = 10_000
    times, counts = np.zeros(len(label)), set()
    run = jax.jit(jax.vmap(lambda k: matching.sample(k, label, **BOX)))
    for part in range(10):  # in parts, which are less to hold
        keys = jax.random.split(jax.random.key(part), n // 10)
        index, valid, positive = map(np.asarray, run(keys))
        counts |= set(zip(valid.sum(1).tolist(), positive.sum(1).tolist(), strict=True))
        times += np.bincount(index[valid], minlength=len(label))
    assert counts == {(512, 40)}
    assert (times[label == 1] == n).all() and (times[label == -1] == 0).all()
    assert abs(times[label == 0] / n - 0.236).max() < 0.02


def test_positives_come_first_and_are_capped_at_random():
    label = np.ones(600, np.int32)
    label[::2] = 0
    index, valid, positive = map(np.asarray, draws(label, 2000, **BOX))
    assert (positive == (np.arange(512) < 128)).all()
    assert (valid == (np.arange(512) < 428)).all()  # 128 + 300
    for row in index[:50]:
        assert len(set(row[:428])) == 428  # without replacement
    times = np.bincount(index[:, :128].ravel(), minlength=600)[1::2]
    assert abs(times / 2000 - 128 / 300).max() < 0.06
    assert (index[0] != index[1]).any()


@pytest.mark.parametrize("label", [[1, 0, -1, 1], [-1] * 4, [0] * 4, [1] * 4])
def test_fewer_than_wanted(label):
    label = jnp.array(label)
    key, how = jax.random.key(0), {"count": 8, "fraction": 0.5}
    index, valid, positive = sample(key, label, **how)
    assert index.shape == valid.shape == positive.shape == (8,)
    assert sorted(index[valid].tolist()) == np.flatnonzero(label >= 0).tolist()
    assert positive.sum() == (label == 1).sum()
    weights = weigh(key, label, **how)
    np.testing.assert_array_equal(weights, label >= 0)


def test_weights_are_the_sample():
    label = jax.random.randint(jax.random.key(1), (500,), -1, 2)
    key, how = jax.random.key(0), {"count": 64, "fraction": 0.5}
    index, valid, _ = sample(key, label, **how)
    weights = weigh(key, label, **how)
    assert weights.dtype == jnp.float32 and weights.sum() == valid.sum() == 64
    assert (weights[index] == 1).all()
    assert weights[label == 1].sum() == 32


# --- suppression -------------------------------------------------------------------


def greedy(boxes, scores, group, valid, threshold):
    """The rule as it is told: the best box stays and takes those like it away."""
    order = np.argsort(-scores, kind="stable")
    left, kept = [i for i in order if valid[i]], []
    while left:
        best, *left = left
        kept.append(best)
        if not left:
            break
        one, rest = boxes[best].astype(float), boxes[left].astype(float)
        size = np.minimum(one[2:], rest[:, 2:]) - np.maximum(one[:2], rest[:, :2])
        shared = size.clip(0).prod(axis=1)
        union = (one[2:] - one[:2]).prod() - shared
        union = union + (rest[:, 2:] - rest[:, :2]).prod(axis=1)
        over = (shared > threshold * union) & (group[left] == group[best])
        left = [i for i, gone in zip(left, over, strict=True) if not gone]
    return kept


def crowd(seed, n):
    """Boxes in heaps, with equal scores, groups, and rows that are not valid."""
    rng = np.random.default_rng(seed)
    heap = drawn_boxes(seed, 1 + seed % 30, most=60)[rng.integers(0, 1 + seed % 30, n)]
    box = heap + rng.integers(-2, 3, (n, 4)) + np.array([0, 0, 3, 3])
    box[:, 2:] = np.maximum(box[:, :2], box[:, 2:])
    scores = rng.integers(0, n // 2, n) / n
    group, valid = rng.integers(0, 1 + seed % 3, n), rng.random(n) < 0.9
    return box.astype(np.float32), scores.astype(np.float32), group, valid


FORMS = jax.jit(nms.whole), jax.jit(nms.tiled)
THRESHOLDS = st.sampled_from([0.25, 0.5, 0.75])


@few
@given(st.integers(0, 10**6), THRESHOLDS)
def test_suppression_is_greedy(seed, threshold):
    n, given = 150, crowd(seed, 150)
    index, valid = suppressed(*given, threshold=threshold, count=n)
    expected = greedy(*given, threshold)
    assert index[valid].tolist() == expected
    assert valid[: len(expected)].all()
    assert 0 < len(expected) < n


@few
@given(st.integers(0, 10**6), THRESHOLDS)
def test_both_forms_are_one(seed, threshold):
    """Three tiles, the last of them not full."""
    box, _, group, valid = crowd(seed, 2 * nms.TILE + 70)
    one, other = (f(box, group, valid, threshold) for f in FORMS)
    np.testing.assert_array_equal(one, other)
    assert 0 < one.sum() < valid.sum()


def test_many_boxes_go_through_tiles():
    n = nms.WHOLE + 30
    given = crowd(41, n)
    run = lambda *a: nms.nms(*a, threshold=0.5, count=n)
    text = jax.jit(run).lower(*given).as_text()
    assert f"tensor<{nms.TILE}x{nms.TILE}xi1>" in text
    assert not any(f"tensor<{m}x{m}x" in text for m in (n, -(-n // 512) * 512))
    index, valid = jax.jit(run)(*given)
    assert index[valid].tolist() == greedy(*given, 0.5)


suppressed = jax.jit(nms.nms, static_argnames="count")


def suppress(box, scores, *, threshold, group=None, valid=None, count=4):
    n = len(box)
    group = jnp.zeros(n, int) if group is None else jnp.array(group)
    valid = jnp.ones(n, bool) if valid is None else jnp.array(valid)
    how = {"threshold": threshold, "count": count}
    given = jnp.array(box, jnp.float32), jnp.array(scores), group, valid
    index, valid = suppressed(*given, **how)
    assert index.shape == valid.shape == (count,)
    return index[valid].tolist()


def test_equal_boxes_with_equal_scores_keep_the_first():
    same = [[0, 0, 4, 4]] * 2
    assert suppress(same, [0.9, 0.9], threshold=0.5) == [0]
    assert suppress(same, [0.9, 0.9], threshold=0.5, valid=[False, True]) == [1]
    assert suppress(same, [0.8, 0.9], threshold=0.5) == [1]
    assert suppress(same, [0.8, 0.9], threshold=0.5, group=[0, 1]) == [1, 0]


def test_overlap_at_the_threshold_keeps_both():
    half = [[0, 0, 2, 1], [0, 0, 1, 1]]
    assert suppress(half, [0.9, 0.8], threshold=0.5) == [0, 1]
    assert suppress(half, [0.9, 0.8], threshold=0.499) == [0]


def test_a_suppressed_box_suppresses_nothing():
    chain = [[0, 0, 10, 1], [3, 0, 13, 1], [6, 0, 16, 1], [9, 0, 19, 1]]
    scores = [0.9, 0.8, 0.7, 0.6]
    assert suppress(chain, scores, threshold=0.5) == [0, 2]
    assert suppress(chain, scores, threshold=0.5, count=1) == [0]


def test_empty_boxes_do_no_harm():
    points = [[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]]
    assert suppress(points, [0.9, 0.8, 0.7], threshold=0.5) == [0, 1, 2]


def test_top_says_what_is_not_there():
    scores, some = jnp.array([1.0, 3, 2]), jnp.array([True, False, True])
    index, valid = ranking.top(scores, some, 5)
    assert valid.tolist() == [True, True, False, False, False]
    assert index[valid].tolist() == [2, 0]
    assert ((index >= 0) & (index < 3)).all()


# --- proposals ---------------------------------------------------------------------

PLACES = np.array([[0, 0, 8, 8], [20, 0, 28, 8], [0, 20, 8, 28]], np.float32)
HOW = {"before": 2, "after": 5, "threshold": 0.7}


propose = jax.jit(proposals, static_argnames=("before", "after"))


def proposed(logits, deltas=None, every=None, hw=(32, 32), **changes):
    logits = tuple(jnp.array(x, jnp.float32) for x in logits)
    deltas = deltas or tuple(jnp.zeros((len(x), 4)) for x in logits)
    every = every or [PLACES] * len(logits)
    given = logits, deltas, every, jnp.array(hw)
    return propose(*given, **HOW | changes)


def test_levels_are_suppressed_apart_and_cut_together():
    box, logits, valid = proposed([[3, 1, 2], [2.5, 0, -1]])
    assert valid.tolist() == [True] * 4 + [False]  # two of each level
    assert logits.tolist() == [3, 2.5, 2, 0, 0]
    np.testing.assert_array_equal(box[:4], PLACES[[0, 0, 2, 1]])
    np.testing.assert_array_equal(box[4], 0)
    _, logits, valid = proposed([[3, 1, 2], [2.5, 0, -1]], after=2)
    assert valid.all() and logits.tolist() == [3, 2.5]


def test_the_best_are_chosen_before_they_are_decoded():
    """The two best lie outside of the image, so nothing is left of this level."""
    box, _, valid = proposed([[3, 1, 2]], hw=(32, 16), before=2)
    assert valid.sum() == 2
    deltas = jnp.zeros((3, 4)).at[jnp.array([0, 2]), 0].set(-9)
    assert proposed([[3, 1, 2]], (deltas,))[2].sum() == 0
    assert proposed([[3, 1, 2]], (deltas,), before=3)[1][0] == 1


def test_proposals_end_with_the_image():
    box, _, valid = proposed([[3, 2, 1]], hw=(30, 24), before=3)
    assert box[valid].tolist() == [[0, 0, 8, 8], [20, 0, 24, 8], [0, 20, 8, 28]]
    assert proposed([[3, 2, 1]], hw=(30, 20), before=3)[2].sum() == 2


def test_what_is_not_finite_is_dropped():
    deltas = jnp.zeros((3, 4)).at[0, 2].set(jnp.nan)
    _, logits, valid = proposed([[3, 2, jnp.nan]], (deltas,), before=3)
    assert logits[valid].tolist() == [2]


def test_proposals_stop_gradients():
    def total(logits, deltas):
        box, scores, _ = proposals((logits,), (deltas,), [PLACES], (32, 32), **HOW)
        return box.sum() + scores.sum()

    given = jnp.array([3.0, 2, 1]), jnp.full((3, 4), 0.01)
    for grad in jax.jit(jax.grad(total, argnums=(0, 1)))(*given):
        np.testing.assert_array_equal(grad, 0)
