"""RoIAlign, masks, detections and losses of detectors: the usual mistakes."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.dense import losses, masks
from mixjax.dense.detections import detections, to_original
from mixjax.dense.roi_align import levels, roi_align, roi_align_dense
from mixjax.errors import UsageError
from mixjax.profiling import collectives
from mixjax.sharding import meshes

few = settings(max_examples=10, deadline=None)

# --- RoIAlign ----------------------------------------------------------------------


STATIC = ("side", "samples")
gathered = jax.jit(roi_align, static_argnums=1, static_argnames=STATIC)
multiplied = jax.jit(roi_align_dense, static_argnames=STATIC)


def pooled(feature, box, *, side=7, samples=2, stride=8):
    """One map [h, w, C] under boxes [R, 4], by both forms, which must agree."""
    box = jnp.array(box, jnp.float32)
    level = jnp.zeros((1, len(box)), jnp.int32)
    how = {"side": side, "samples": samples}
    found = gathered((feature[None],), (stride,), box[None], level, **how)[0]
    again = multiplied(feature, stride, box, **how)
    np.testing.assert_allclose(found, again, atol=2e-4)
    return found


BORDERS = [[0, 0, 40, 40], [40, 0, 80, 48], [0, 0, 80, 48], [10, 40, 12, 48]]


def test_constant_maps_stay_constant():
    """Trap 3: boxes that touch the border lose nothing to zeros beyond it."""
    found = pooled(jnp.full((6, 10, 2), 3.5), BORDERS)
    np.testing.assert_allclose(found, 3.5, rtol=1e-6)


def test_ramps_give_the_centres_of_bins():
    """Half a pixel less: the value of pixel i stands at i + 0.5."""
    x = jnp.broadcast_to(jnp.arange(10.0)[None, :, None], (6, 10, 1))
    found = pooled(x, [[12, 12, 54, 33]])
    centres = (12 + (np.arange(7) + 0.5) * 6) / 8 - 0.5
    np.testing.assert_allclose(found[0, :, :, 0], np.tile(centres, (7, 1)), rtol=1e-5)
    y = jnp.broadcast_to(jnp.arange(6.0)[:, None, None], (6, 10, 1))
    centres = (12 + (np.arange(7) + 0.5) * 3) / 8 - 0.5
    found = pooled(y, [[12, 12, 54, 33]])
    np.testing.assert_allclose(found[0, 0, :, 0] * 0 + found[0, :, 0, 0], centres, 1e-5)


def test_far_outside_is_nothing():
    found = pooled(jnp.ones((6, 10, 1)), [[-800, 0, -80, 40], [0, 70, 80, 90]])
    np.testing.assert_array_equal(found, 0)


@few
@given(st.integers(0, 10**6))
def test_gathers_and_products_agree(seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(-20, 80, (5, 2))
    box = np.concatenate([start, start + rng.uniform(0, 60, (5, 2))], axis=1)
    feature = jnp.asarray(rng.normal(size=(6, 10, 3)), jnp.float32)
    assert abs(pooled(feature, box, side=3)).max() > 0


def test_levels_by_area():
    """Trap 4."""
    side = jnp.array([0, 10, 111.9, 112, 223.9, 224, 447.9, 448, 9999])
    box = jnp.stack([side * 0 + 7, side * 0 + 9, side + 7, side + 9], axis=1)
    run = jax.jit(levels, static_argnames=("lowest", "highest"))
    assert run(box, lowest=2, highest=5).tolist() == [2, 2, 2, 3, 3, 4, 4, 5, 5]
    assert run(box, lowest=3, highest=4).tolist() == [3, 3, 3, 3, 3, 4, 4, 4, 4]


def test_gradients_add_up_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    feature = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    box = jnp.tile(jnp.array([[[8.0, 8, 16, 16]]]), (1, 600, 1))
    level = jnp.zeros((1, 600), jnp.int32)

    def total(feature, box):
        found = roi_align((feature,), (8,), box, level, side=1, samples=1)
        assert found.dtype == jnp.bfloat16
        return found.astype(jnp.float32).sum()

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(feature, box)
    assert grads[0].dtype == jnp.bfloat16 and grads[0][0, 1, 1, 0] == 600
    np.testing.assert_array_equal(grads[1], 0)


def test_a_batch_over_devices_sends_nothing():
    mesh = meshes.make(fsdp=1)
    rows = meshes.batched(mesh)
    maps = tuple(jnp.ones((8, n, n, 4)) for n in (8, 4))
    box = jnp.tile(jnp.array([[4.0, 4, 20, 20], [0, 0, 32, 32]]), (8, 1, 1))
    level = jnp.tile(jnp.array([0, 1]), (8, 1))

    def total(maps, box, level):
        found = roi_align(maps, (4, 8), box, level, side=2, samples=2)
        return found, jax.grad(lambda m: (run(m, box, level) ** 2).sum())(maps)

    run = lambda *a: roi_align(*a[:1], (4, 8), *a[1:], side=2, samples=2)
    placed = jax.device_put((maps, box, level), rows)
    code = jax.jit(total, out_shardings=rows).lower(*placed).compile().as_text()
    assert "num_partitions=8" in code
    assert not collectives.parse(code)


# --- masks -------------------------------------------------------------------------


def disc(height, width, box):
    """An ellipse that fills a box."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
    return x**2 + y**2 <= 1


targets = jax.jit(masks.mask_targets, static_argnums=4)


def target(crop, own, box, side):
    given = np.asarray(crop)[None], np.array([own], np.float32), np.zeros(1, int)
    return targets(*given, np.array([box], np.float32), side)[0]


def test_targets_stand_where_the_object_does():
    """A full crop seen from a box twice as wide to the right, and as far above."""
    full = np.ones((112, 112), np.uint8)
    np.testing.assert_array_equal(
        target(full, [10, 20, 30, 60], [10, 20, 30, 60], 8), 1
    )
    found = target(full, [10, 20, 30, 60], [10, -20, 50, 60], 8)
    expected = np.zeros((8, 8))
    expected[4:, :4] = 1
    np.testing.assert_array_equal(found, expected)
    # No edge pixel goes on beyond the crop, not even by one cell as in RoIAlign.
    found = target(full[:4, :4], [0, 0, 4, 4], [0, 0, 5, 4], 5)
    np.testing.assert_array_equal(found, [[1, 1, 1, 1, 0]] * 5)


def test_targets_of_padding_are_finite():
    nothing, box = np.zeros((1, 4), np.float32), np.array([[0, 0, 9, 9]], np.float32)
    with jax.debug_nans(True):  # which looks at each operation outside of jit
        found = masks.mask_targets(
            np.zeros((1, 8, 8)), nothing, np.zeros(1, int), box, 4
        )
    np.testing.assert_array_equal(found, 0)


BOXES = [[10, 20, 30.5, 44.25], [0, 0, 64, 48], [3.3, 4.4, 60.1, 24.2]]


@pytest.mark.parametrize("box", BOXES)
def test_crops_keep_the_shape(box):
    crop = masks.crop_mask(disc(48, 64, box), np.array(box), 112)
    assert crop.dtype == np.uint8 and crop.shape == (112, 112)
    assert np.mean(crop != disc(112, 112, [0, 0, 112, 112])) < 0.06
    again = target(crop, box, box, 28)
    assert np.mean(again != disc(28, 28, [0, 0, 28, 28])) < 0.06


def test_crops_shrink_by_area():
    """A pixel in every other column of a block is a half, in fewer it is less."""
    mask = np.zeros((64, 64), bool)
    mask[:, ::4] = True
    assert masks.crop_mask(mask, np.array([0, 0, 64, 64]), 4).sum() == 0
    assert masks.crop_mask(~mask, np.array([0, 0, 64, 64]), 4).sum() == 16


def test_crop_of_everything_is_full():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 5:35] = True
    assert masks.crop_mask(mask, np.array([5, 10, 35, 20]), 16).all()


@few
@given(st.integers(0, 10**6))
def test_paste_reads_at_pixel_centres(seed):
    rng = np.random.default_rng(seed)
    probs, start = rng.random((7, 7)), rng.uniform(-9, 20, 2)
    box = np.concatenate([start, start + rng.uniform(0.5, 25, 2)])
    found = masks.paste(probs, box, 16, 20)
    assert found.shape == (16, 20) and found.dtype == bool
    y, x = rng.integers(0, 16), rng.integers(0, 20)
    at = (np.array([x, y]) + 0.5 - box[:2]) / (box[2:] - box[:2]) * 7 - 0.5
    cells = np.floor(at).astype(int)
    value = 0
    for i, j in np.ndindex(2, 2):
        u, v = cells + (i, j)
        if 0 <= u < 7 and 0 <= v < 7:
            value += probs[v, u] * (1 - abs(at - (u, v))).prod()
    assert found[y, x] == (value >= 0.5)


@pytest.mark.parametrize("box", [[-9, -9, -2, -2], [50, 50, 60, 60], [5, 5, 5, 5]])
def test_paste_of_nothing(box):
    assert not masks.paste(np.ones((4, 4)), np.array(box), 16, 20).any()


def test_paste_fills_the_box():
    found = masks.paste(np.ones((4, 4)), np.array([3, 2, 11, 10]), 16, 20)
    assert found[2:10, 3:11].all() and found.sum() == 64


# --- detections --------------------------------------------------------------------

HOW = {"score_threshold": 0.05, "nms_threshold": 0.5, "count": 4, "candidates": 100}
WHERE = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 50, 30]])
PROBS = jnp.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.05, 0.051, 0.899]])


def detected(box=WHERE, probs=PROBS, valid=(True, True, True), **changes):
    run = lambda box, probs: detections(
        box, probs, (25, 40), valid=jnp.array(valid), **HOW | changes
    )
    found = jax.jit(run)(box, probs)
    assert found.boxes.shape == (len(found.valid), 4)
    assert found.valid.dtype == bool and not found.scores[~found.valid].any()
    pairs = zip(found.roi.tolist(), found.classes.tolist(), strict=True)
    return found, [p for p, ok in zip(pairs, found.valid, strict=True) if ok]


def test_detections_by_class_and_above_the_threshold():
    """Equal boxes of two classes stay; a score at the threshold does not count."""
    found, pairs = detected()
    assert pairs == [(0, 0), (1, 1), (2, 1)]
    np.testing.assert_array_equal(found.boxes[2], [20, 20, 40, 25])
    assert found.overflow == 0


def test_detections_leave_invalid_regions_out():
    assert detected(valid=(False, True, True))[1] == [(1, 0), (1, 1), (2, 1)]
    assert detected(valid=(False,) * 3)[1] == []


def test_each_class_has_its_own_boxes():
    each = jnp.concatenate([WHERE, WHERE + 5], axis=1)
    found, pairs = detected(each)
    assert pairs == [(0, 0), (1, 1), (2, 1)]
    np.testing.assert_array_equal(found.boxes[0], [0, 0, 10, 10])
    np.testing.assert_array_equal(found.boxes[1], [5, 5, 15, 14])


def test_candidates_left_out_are_counted():
    assert detected(candidates=5)[0].overflow == 0
    found, pairs = detected(candidates=2)
    assert found.overflow == 3 and pairs == [(0, 0)]


def test_empty_detections_stay():
    assert detected(WHERE + 100)[1][0] == (0, 0)


def test_each_axis_has_its_own_scale():
    given = jnp.array([[10.0, 10, 20, 20], [0, 0, 999, 999]])
    found = to_original(given, (100, 200), (50, 600))
    np.testing.assert_allclose(found, [[30, 5, 60, 10], [0, 0, 600, 50]])


# --- losses ------------------------------------------------------------------------


def twice(tree):
    return jax.tree.map(lambda x: np.concatenate([x, x]), tree)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def rpn():
    rng = np.random.default_rng(0)
    logits, deltas, wanted = (normal(rng, 2, 30, *s) for s in ((), (4,), (4,)))
    return logits, deltas, rng.integers(-1, 2, (2, 30)), wanted


def heads():
    """Regions of two images with padding, and what their heads say; 3 classes."""
    rng = np.random.default_rng(0)
    box = np.sort(rng.uniform(0, 50, (2, 2, 9, 2, 2)), axis=-2).reshape(2, 2, 9, 4)
    box = (box + np.array([0, 0, 5, 5])).astype(np.float32)
    valid = np.arange(9) < np.array([[9], [6]])
    positive = np.arange(9) < np.array([[3], [2]])
    given = {"classes": rng.integers(0, 3, (2, 9)), "valid": valid}
    given |= {"positive": positive, "proposals": box[0], "targets": box[1]}
    return (normal(rng, 2, 9, 4), normal(rng, 2, 9, 12)), given


BOX = {"weights": (10.0, 10.0, 5.0, 5.0), "beta": 0.0}
KINDS = pytest.mark.parametrize("kind", ["l1", "giou"])
rpn_losses = jax.jit(losses.rpn_losses, static_argnames="beta")
mask_loss = jax.jit(losses.mask_loss)


def of_heads(kind):
    """(what the heads say, what they should) -> the two losses."""
    return jax.jit(lambda a, b: losses.box_losses(*a, **b, **BOX, kind=kind))


@KINDS
def test_an_image_twice_is_the_same_loss(kind):
    """Trap 6: the normalisers are of the whole batch."""
    one = rpn_losses(*rpn(), normaliser=64 * 2, beta=0.1)
    two = rpn_losses(*twice(rpn()), normaliser=64 * 4, beta=0.1)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    run = of_heads(kind)
    np.testing.assert_allclose(run(*heads()), run(*twice(heads())), rtol=1e-5)
    case = mask_case()
    one, two = mask_loss(*case), mask_loss(*twice(case))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@KINDS
def test_images_do_not_weigh_the_same(kind):
    """The mean goes over regions, of which the second image has fewer."""
    out, given = heads()
    run = of_heads(kind)
    both = run(out, given)
    part = lambda i: jax.tree.map(lambda x: x[i : i + 1], (out, given))
    each = [run(*part(i)) for i in (0, 1)]
    expected = [(9 * a + 6 * b) / 15 for a, b in zip(*each, strict=True)]
    np.testing.assert_allclose(both, expected, rtol=1e-5)


@KINDS
def test_padding_has_no_loss_and_no_gradient(kind):
    """Not even NaN, where its boxes are nothing at all."""
    (logits, deltas), given = heads()
    run = of_heads(kind)
    expected = run((logits, deltas), given)
    pad = ~given["valid"][..., None]
    for name in ("proposals", "targets"):
        given[name] = np.where(pad, 0, given[name])
    given["classes"] = np.where(given["positive"], given["classes"], 999)
    given["positive"] |= pad[..., 0]  # valid decides
    out = np.where(pad, 50, logits), np.where(pad, 50, deltas)
    np.testing.assert_allclose(run(out, given), expected, rtol=1e-6)
    grads = jax.jit(jax.grad(lambda out: sum(run(out, given))))(out)
    grads = jax.tree.map(np.asarray, grads)
    for grad in grads:
        assert np.isfinite(grad).all() and (grad[~given["valid"]] == 0).all()
    assert (abs(grads[1]).sum(-1) > 0).sum() == 5  # the positives


def test_own_class_alone_has_a_box_loss():
    out, given = heads()
    run = lambda deltas: losses.box_losses(out[0], deltas, **given, **BOX, kind="l1")[1]
    grad = np.asarray(jax.jit(jax.grad(run))(out[1])).reshape(2, 9, 3, 4)
    hit = (abs(grad).sum(-1) > 0) & given["positive"][..., None]
    own = np.eye(3, dtype=bool)[given["classes"]] & given["positive"][..., None]
    np.testing.assert_array_equal(hit, own)


def test_rpn_losses_by_hand():
    logits, deltas, labels, targets = rpn()
    found = rpn_losses(logits, deltas, labels, targets, normaliser=7, beta=0.5)
    p = 1 / (1 + np.exp(-logits))
    entropy = -np.log(np.where(labels == 1, p, 1 - p))[labels >= 0].sum() / 7
    size = abs(deltas - targets)[labels == 1]
    smooth = np.where(size < 0.5, size**2, size - 0.25).sum() / 7
    np.testing.assert_allclose(found, [entropy, smooth], rtol=1e-5)


def test_rows_of_no_object_leave_the_rpn_alone():
    logits, deltas, labels, targets = rpn()
    targets = np.where((labels == 1)[..., None], targets, np.inf)
    run = lambda d: sum(
        losses.rpn_losses(logits, d, labels, targets, normaliser=9, beta=1 / 9)
    )
    value, grad = jax.jit(jax.value_and_grad(run))(deltas)
    grad = np.asarray(grad)
    assert np.isfinite(value) and np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[labels != 1], 0)


def test_an_unknown_box_loss_is_named():
    out, given = heads()
    with pytest.raises(UsageError, match="box loss 'giuo'.*'giou'"):
        losses.box_losses(*out, **given, **BOX, kind="giuo")


def mask_case():
    rng = np.random.default_rng(0)
    logits, target = normal(rng, 2, 4, 6, 6, 3), rng.integers(0, 2, (2, 4, 6, 6))
    positive = np.arange(4) < np.array([[3], [1]])
    return logits, target.astype(np.float32), rng.integers(0, 3, (2, 4)), positive


def test_mask_loss_is_a_mean_over_positives():
    logits, target, classes, positive = mask_case()
    found = mask_loss(logits, target, classes, positive)
    p = np.take_along_axis(logits, classes[..., None, None, None], -1)
    p = 1 / (1 + np.exp(-p))
    each = -np.log(np.where(target == 1, p[..., 0], 1 - p[..., 0]))
    np.testing.assert_allclose(found, each[positive].mean(), rtol=1e-5)
    odd = np.where(positive, classes, 3)  # background is no channel
    np.testing.assert_allclose(
        mask_loss(logits, target, odd, positive), found, rtol=1e-6
    )


def test_mask_loss_of_nothing_is_zero():
    logits, target, classes, positive = mask_case()
    run = lambda x: losses.mask_loss(x, target, classes, positive & False)
    value, grad = jax.jit(jax.value_and_grad(run))(logits)
    assert value == 0 and (grad == 0).all()
