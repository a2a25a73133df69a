"""What is known of a picture stays with its pixels, whatever the view does to them."""

import colorsys
import io

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from mixjax.data import (
    coco_objects,
    photometric,
    scene_moves,
    scene_ops,
    scene_targets,
    views,
)
from mixjax.data.scene_targets import draw_mask
from mixjax.data.scenes import Map, objects, rasterise
from mixjax.errors import UsageError
from tests.support import annotated_sets

SEEDS = st.integers(0, 10**6)
OPS = {
    "large_jitter": "large_jitter(160, scale=(.3, 2.), objects=4, mask_side=28)",
    "short_side": "short_side((60, 90), 150, canvas=160, objects=4, mask_side=28)",
    "cropped": "short_side((60, 90), 150, canvas=(160, 170), objects=4, mask_side=28, "
    "crop=True)",
}


def op_of(text):
    """The operation that a view's text begins with."""
    return views.parse(text, "data.views[0]").scene


def run(text, image, known, seed=0):
    return op_of(text)(image, known, np.random.default_rng(seed))


class Drawn:
    """A generator that gives what it is told to."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)

    def choice(self, values):
        return values[self.numbers.pop(0)]


@st.composite
def some_scenes(draw):
    """(height, width, two boxes of whole numbers that do not touch)."""
    height, width = draw(st.integers(40, 200)), draw(st.integers(60, 200))
    boxes = []
    for low, high in ((0, width // 2 - 2), (width // 2 + 2, width)):
        x0 = draw(st.integers(low, high - 12))
        y0 = draw(st.integers(0, height - 12))
        x1, y1 = draw(st.integers(x0 + 12, high)), draw(st.integers(y0 + 12, height))
        boxes.append((x0, y0, x1, y1))
    return height, width, boxes


def check_object(image, found, i, mask_side):
    """Box and mask of object i, if any, fit what the picture shows of its colour."""
    place = np.flatnonzero(found["present"] & (found["classes"] == i))
    shown = annotated_sets.seen(image, i)
    if not len(place):
        assert shown.sum() <= 2 * max(shown.shape)  # a sliver at most
        return
    box = found["boxes"][place[0]]
    if min(box[2:] - box[:2]) < 6:  # blurred to less than half of the colour
        return
    assert np.abs(box - annotated_sets.around(shown)).max() <= 1.01
    mask = found["masks"][place[0]]
    x0, y0, x1, y1 = np.round(box).astype(int)
    size = (max(x1 - x0, 1), max(y1 - y0, 1))
    mask = np.asarray(Image.fromarray(255 * mask).resize(size, Image.BILINEAR)) > 127
    wrong = (mask != shown[y0:y1, x0:x1]).sum()
    assert wrong <= 2 * (sum(size) + mask_side), (box, wrong)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("kind", ["outlines", "run lengths"])
@given(scene=some_scenes(), seed=SEEDS)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_boxes_and_masks_follow_the_pixels(name, kind, scene, seed):
    image, known = annotated_sets.drawn(scene[2], *scene[:2])
    if kind == "run lengths":
        known = known._replace(
            shapes=tuple(run_lengths(s, *scene[:2]) for s in known.shapes)
        )
    out, found = run(OPS[name], image, known, seed)
    assert out.dtype == np.uint8 and out.shape[0] == 160
    height, width = found["hw"].astype(int)
    assert not out[height:].any() and not out[:, width:].any()
    for i in range(2):
        check_object(out, found, i, 28)


def run_lengths(outline, height, width):
    """A shape as COCO's crowds are: plain counts, column by column."""
    flat = rasterise(outline, height, width).T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    return {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}


@pytest.mark.parametrize("name", OPS)
@given(scene=some_scenes(), seed=SEEDS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_boxes_alone_follow_the_pixels(name, scene, seed):
    image, known = annotated_sets.drawn(
        scene[2], *scene[:2], outline=annotated_sets.rectangle, shaped=False
    )
    text = OPS[name].replace("mask_side=28", "mask_side=0")
    out, found = run(text, image, known, seed)
    assert "masks" not in found
    limit = np.tile(found["hw"][::-1], 2)
    for box, number in zip(found["boxes"], found["classes"], strict=True):
        assert (box >= 0).all() and (box <= limit).all()
        if min(box[2:] - box[:2]) >= 6:
            assert (
                np.abs(
                    box - annotated_sets.around(annotated_sets.seen(out, number))
                ).max()
                <= 1.01
            )


@given(
    shape=st.lists(st.floats(-20, 90), min_size=6, max_size=16),
    top=st.integers(0, 40),
    left=st.integers(0, 40),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_drawn_window_is_the_window_of_a_drawing(shape, top, left):
    """Outlines are cut by drawing, so that polygons need not be clipped."""
    outline = [np.array(shape[: len(shape) // 2 * 2])]
    whole = rasterise([outline[0] + 100], 200, 200)  # nothing is left of it or above
    shift = -np.array([left, top], float)
    window = draw_mask(outline, (0, 0), np.ones(2), shift, (30, 25))
    expected = whole[100 + top : 130 + top, 100 + left : 125 + left]
    assert (window != expected).sum() <= 1  # where a line meets the middle of a fifth


def test_flips_turn_boxes_and_masks():
    image, known = annotated_sets.drawn([(10, 20, 40, 80)], 100, 120)
    text = "short_side((100,), 200, canvas=128, objects=2, mask_side=16, flip={})"
    stays, turned = (run(text.format(p), image, known) for p in ("0.", "1."))
    np.testing.assert_array_equal(stays[1]["boxes"][0], [10, 20, 40, 80])
    np.testing.assert_array_equal(turned[1]["boxes"][0], [80, 20, 110, 80])
    np.testing.assert_array_equal(turned[0][:100, :120], image[:, ::-1])
    corner = np.ones((16, 16), np.uint8)
    corner[:8, 8:] = 0
    np.testing.assert_array_equal(stays[1]["masks"][0], corner)
    np.testing.assert_array_equal(turned[1]["masks"][0], corner[:, ::-1])
    assert stays[1]["masks"].dtype == np.uint8 and not stays[1]["masks"][1].any()


def places(height, width):
    """A picture whose pixels say where they are: red is x, green is y."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def nothing(height, width):
    return objects(3, height, width, [], with_shapes=True)


def test_large_jitter_cuts_on_the_diagonal():
    """One number for both axes, though the generator has another one to give."""
    op = op_of("large_jitter(64, scale=(2., 2.), objects=3)")
    rng = Drawn(0.9, 0.5, 0.25, 0.75)
    out, found = op(places(128, 128), nothing(128, 128), rng)
    assert tuple(out[0, 0]) == (16, 16, 0) and rng.numbers == [0.75]
    assert tuple(out[63, 63]) == (79, 79, 0)
    wide = op(places(64, 128), nothing(64, 128), Drawn(0.9, 0.5, 0.25))[0]
    assert tuple(wide[0, 0]) == (16, 0, 0)
    assert not found["present"].any() and found["boxes"].shape == (3, 4)


def test_large_jitter_fits_a_square_of_the_scale():
    op = op_of("large_jitter(100, scale=(.1, 2.), objects=3, mask_side=8)")
    for draw_, size in ((0.0, (5, 10)), (9 / 19, (50, 100)), (1.0, (100, 100))):
        _, found = op(places(60, 120), nothing(60, 120), Drawn(0.9, draw_, 0.0))
        np.testing.assert_array_equal(found["hw"], size)


def test_short_sides_and_the_canvas():
    text = "short_side((40, 50), longest={}, canvas={}, mask_side=0)"
    sizes = {
        (120, 160): {(40, 80), (50, 100)},
        (90, 160): {(40, 80), (45, 90)},
        (120, (50, 60)): {(30, 60)},
    }
    for (longest, canvas), wanted in sizes.items():
        found = set()
        for seed in range(12):
            out, one = run(
                text.format(longest, canvas), places(60, 120), nothing(60, 120), seed
            )
            found.add(tuple(one["hw"].astype(int)))
        assert found == wanted
        assert out.shape[:2] == (canvas if isinstance(canvas, tuple) else (canvas,) * 2)


def test_windows_of_the_second_policy():
    """A side of 384 to 600 pixels, or all there is, anywhere and not on a diagonal."""
    moved = scene_moves.Moved(
        np.zeros((500, 800, 3), np.uint8), np.ones(2), np.zeros(2)
    )
    rng = np.random.default_rng(0)
    cut = [scene_ops.crop_randomly(moved, rng) for _ in range(400)]
    sizes = np.array([one.image.shape[:2] for one in cut])
    assert 384 <= sizes.min() <= 386 and 496 <= sizes[:, 0].max() <= 500
    assert 590 <= sizes[:, 1].max() <= 600
    left, top = -np.array([one.shift for one in cut]).T
    assert (
        abs(np.corrcoef(left / (801 - sizes[:, 1]), top / (501 - sizes[:, 0]))[0, 1])
        < 0.2
    )
    small = moved._replace(image=np.zeros((30, 40, 3), np.uint8))
    assert scene_ops.crop_randomly(small, rng).image.shape == (30, 40, 3)


def test_every_other_picture_is_cut():
    text = OPS["cropped"].replace("(60, 90), 150", "(90,), 150")
    image, known = places(240, 120), nothing(240, 120)
    sizes = [tuple(run(text, image, known, s)[1]["hw"]) for s in range(60)]
    whole = sizes.count((150, 75))
    assert 18 <= whole <= 42 and len(set(sizes)) > 5


@given(scene=some_scenes())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_fit_is_undone_by_its_numbers(scene):
    image, known = annotated_sets.drawn(
        scene[2], *scene[:2], outline=annotated_sets.rectangle
    )
    out, found = run("fit(80, longest=130, canvas=160)", image, known)
    assert found.keys() == {"hw", "original"} and out.shape == (160, 160, 3)
    np.testing.assert_array_equal(found["original"], image.shape[:2])
    assert found["hw"].min() == 80 or found["hw"].max() == 130
    ratio = np.tile((found["hw"] / found["original"])[::-1], 2)
    for i, box in enumerate(known.boxes * ratio):
        if min(box[2:] - box[:2]) >= 4:
            assert (
                np.abs(box - annotated_sets.around(annotated_sets.seen(out, i))).max()
                <= 1.01
            )


def test_crowds_are_left_out_and_what_is_cut_away_too():
    boxes = [(0, 0, 20, 20), (100, 100, 120, 120), (60, 60, 70, 70)]
    image, known = annotated_sets.drawn(
        boxes, 128, 128, annotated_sets.rectangle, crowd=(2,)
    )
    op = op_of("large_jitter(64, scale=(2., 2.), objects=3, mask_side=8)")
    _, found = op(image, known, Drawn(0.9, 0.5, 0.0))
    assert found["present"].tolist() == [True, False, False] and found["dropped"] == 0
    np.testing.assert_array_equal(found["boxes"], [[0, 0, 20, 20], [0] * 4, [0] * 4])
    _, found = op(image, known, Drawn(0.9, 0.5, 1.0))
    assert found["classes"][found["present"]].tolist() == [1]
    np.testing.assert_array_equal(found["boxes"][0], [36, 36, 56, 56])
    hidden = known._replace(crowd=np.ones(3, bool))
    assert not op(image, hidden, Drawn(0.9, 0.5, 0.0))[1]["present"].any()


def test_boxes_are_tight_around_what_a_cut_leaves():
    """An L cut to its foot is as high as the foot, not as its box."""
    image, known = annotated_sets.drawn([(40, 20, 120, 100)], 128, 128)
    for side, top in ((8, 60), (0, 20)):
        op = op_of(f"large_jitter(64, scale=(2., 2.), objects=1, mask_side={side})")
        moved = op(image[:, ::-1], known, Drawn(0.4, 0.5, 1.0))[1]
        right = op(image, known, Drawn(0.9, 0.5, 1.0))[1]
        assert moved["boxes"][0].tolist() == [0, max(top - 64, 0), 24, 36]
        assert right["boxes"][0].tolist() == [0, max(top - 64, 0), 56, 36]


def test_the_largest_stay_where_there_is_no_room():
    boxes = [(0, 0, 8, 8), (20, 0, 50, 20), (60, 40, 70, 55)]
    image, known = annotated_sets.drawn(boxes, 60, 80, annotated_sets.rectangle)
    text = "short_side((60,), 100, canvas=80, objects={}, mask_side=8, flip=0)"
    _, found = run(text.format(2), image, known)
    assert found["classes"].tolist() == [1, 2] and found["dropped"] == 1
    assert found["present"].all() and found["masks"].all()
    assert found["dropped"].dtype == np.int32 and found["dropped"].shape == ()
    _, found = run(text.format(3), image, known)
    assert found["classes"].tolist() == [0, 1, 2] and found["dropped"] == 0


def test_the_same_shapes_for_all_pictures_of_the_sample(shared):
    source = coco_objects.open_coco(str(shared / "data/coco_sample"), "train", "")
    op = op_of("large_jitter(128, objects=20, mask_side=28)")
    shapes = set()
    for i in range(source.size):
        image, found = op(*source.read(i), np.random.default_rng(i))
        shapes.add((image.shape, *((k, v.shape, v.dtype) for k, v in found.items())))
        there = found["present"]
        sides = found["boxes"][there][:, 2:] - found["boxes"][there][:, :2]
        assert (sides > 0).all() and not found["boxes"][~there].any()
        assert (found["masks"][there].any(axis=(1, 2))).all()
    assert len(shapes) == 1


def jpeg(height, width, rotated):
    file = io.BytesIO()
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6 if rotated else 1
    image.save(file, "jpeg", exif=exif)
    return file.getvalue()


def test_what_does_not_go_together_is_told_in_a_sentence():
    image, known = annotated_sets.drawn([(1, 1, 9, 9)], 20, 30, shaped=False)
    with pytest.raises(UsageError, match="picture 1 has objects without masks"):
        run("large_jitter(32)", image, known)
    with pytest.raises(UsageError, match="1 is 20 x 31 .* is for 20 x 30"):
        run("fit(32, 32, 32)", np.zeros((20, 31, 3), np.uint8), known)
    with pytest.raises(UsageError, match="1 is 30 x 20 .* is for 20 x 30"):
        run("fit(32, 32, 32)", jpeg(20, 30, rotated=True), known)
    labels = Map(np.zeros((20, 29), np.uint8), "a")
    with pytest.raises(UsageError, match="a is 20 x 30 .* is for 20 x 29"):
        run("segment_fit(32, 32)", jpeg(20, 30, rotated=False), labels)
    with pytest.raises(UsageError, match="transforms boxes along"):
        run("large_jitter(32)", image, labels)
    with pytest.raises(UsageError, match="transforms a label map along"):
        run("segment_crop(32)", image, known)


@pytest.mark.parametrize(
    "text",
    [
        "large_jitter(0)",
        "large_jitter(32, scale=(2., 1.))",
        "large_jitter(32, objects=0)",
        "short_side((), 32, 32)",
        "short_side((40,), 32, 32)",
        "short_side((40,), 64, 32, flip=2.)",
        "fit(32, 16, canvas=64)",
        "segment_crop(32, share=0.)",
        "segment_crop(32, base=(16, 32))",
        "segment_fit(0, 16)",
        "large_jitter('32')",
    ],
)
def test_arguments_that_make_no_sense(text):
    with pytest.raises(UsageError, match=r"data.views\[0\]: "):
        op_of(text)


# --- maps of classes ---------------------------------------------------------------


def quarters(height, width):
    """(picture, map): four classes, 0, 80, 160 and 240 in grey, and a frame of 255."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] += 1
    labels[:, width // 2 :] += 2
    image = np.repeat(80 * labels[..., None], 3, axis=2)
    labels[0], labels[-1] = 255, 255
    return image, Map(labels, "a")


@given(height=st.integers(20, 90), width=st.integers(20, 90), seed=SEEDS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_labels_follow_the_pixels(height, width, seed):
    image, known = quarters(height, width)
    text = "segment_crop(48, base=(120, 50))"
    out, found = run(text, image, known, seed)
    assert out.shape == (48, 48, 3) and found["map"].dtype == np.uint8
    h, w = found["hw"].astype(int)
    assert not out[h:].any() and not out[:, w:].any()
    assert (found["map"][h:] == 255).all() and (found["map"][:, w:] == 255).all()
    counted = found["map"][:h, :w] != 255
    nearest = np.round(out[:h, :w, 0] / 80).astype(int)
    wrong = (nearest != found["map"][:h, :w]) & counted
    assert wrong.sum() <= 3 * (h + w)  # at borders, where the picture is blurred
    assert counted.any()


def test_segment_crop_flips_half_of_them():
    image, known = quarters(48, 48)
    text = "segment_crop(48, scale=(1., 1.), base=(48, 48), share=1.)"
    flipped = [run(text, image, known, s)[0][1, 1, 0] == 160 for s in range(60)]
    assert 18 <= sum(flipped) <= 42


def test_segment_crop_looks_for_a_window_of_several_classes():
    """A map of one class but for its last columns: most windows see that class only."""
    labels = np.zeros((40, 400), np.uint8)
    labels[:, 360:] = 1
    known, image = Map(labels, "a"), np.zeros((40, 400, 3), np.uint8)
    shares = {}
    for share in ("1.", ".9"):
        text = f"segment_crop(40, scale=(1., 1.), base=(400, 40), share={share})"
        maps = [run(text, image, known, seed)[1]["map"] for seed in range(100)]
        shares[share] = np.mean([0.05 < (m == 1).mean() < 0.95 for m in maps])
    assert shares["1."] < 0.2 and 0.5 < shares[".9"] < 0.95  # ten tries, not more


def test_ignored_pixels_are_no_class_of_a_window():
    labels = np.zeros((8, 16), np.uint8)
    labels[:, :8] = 255
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(40):
        at = views.scene_ops.map_ops.varied_window(
            labels, 8, 0.75, counting := Counting(rng)
        )
        assert labels[at].shape == (8, 8)
        drawn.append(counting.count)
    assert set(drawn) == {2 * 11}  # never good enough: the last of eleven is taken


class Counting:
    """A generator that counts how often it is asked."""

    def __init__(self, rng):
        self.rng, self.count = rng, 0

    def integers(self, high):
        self.count += 1
        return self.rng.integers(high)


def test_segment_fit_keeps_the_labels_as_they_are():
    image, known = quarters(30, 60)
    out, found = run("segment_fit(20, longest=50)", image, known)
    assert out.shape == (20, 40, 3) and found.keys() == {"map"}
    assert found["map"] is known.labels
    assert run("segment_fit(40, longest=50)", image, known)[0].shape == (25, 50, 3)


# --- photometric distortion --------------------------------------------------------


def by_hand(pixel, shifts, factors, early):
    """mmsegmentation's order, one pixel at a time, with Python's HSV."""
    clip = lambda p: tuple(min(max(float(v), 0.0), 1.0) for v in p)
    pixel = clip(v + shifts[0] for v in pixel)
    if early:
        pixel = clip(v * factors[0] for v in pixel)
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    saturation = min(saturation * factors[1], 1.0)
    hue = (hue + np.trunc(255 * shifts[1]) / 255) % 1
    pixel = colorsys.hsv_to_rgb(hue, saturation, value)
    return pixel if early else clip(v * factors[0] for v in pixel)


@pytest.mark.parametrize("early", [True, False])
def test_distortion_is_that_of_hsv(early):
    rng = np.random.default_rng(0)
    image = rng.random((6, 5, 3)).astype(np.float32)
    image[0] = image[0, :, :1]  # greys
    image[1, 0] = 0
    image = jnp.asarray(image)
    run_ = jax.jit(photometric.distort)
    for shifts, factors in (
        ((0.1, 0.09), (1.4, 1.5)),
        ((-0.12, -0.1), (0.6, 0.5)),
        ((0.0, 0.0), (1.0, 1.0)),
    ):
        out = run_(image, jnp.array(shifts), jnp.array(factors), early)
        expected = [
            [by_hand(p, shifts, factors, early) for p in row] for row in np.array(image)
        ]
        np.testing.assert_allclose(out, expected, atol=2e-5)


def test_each_distortion_has_a_coin_of_its_own():
    """Levels tell which were applied: each alone in half of the images."""
    grey = jnp.full((1, 1, 3), 0.5)
    image = jnp.array([[[0.6, 0.3, 0.2]]])
    keys = jax.random.split(jax.random.key(0), 600)

    def share(image, changed, **only):
        off = {"brightness": 0.0, "hue": 0.0, "contrast": (1.0, 1.0)}
        off |= {"saturation": (1.0, 1.0)}
        op = photometric.photometric(**{**off, **only})
        out = jax.jit(jax.vmap(lambda key: op(key, image)))(keys)
        assert out.min() >= 0 and out.max() <= 1
        return float(changed(np.asarray(out[:, 0, 0])).mean())

    moved = lambda out: np.abs(out - np.asarray(image[0, 0])).max(axis=1) > 1e-4
    assert (
        0.43
        < share(grey, lambda o: np.abs(o[:, 0] - 0.5) > 1e-4, brightness=0.1)
        < 0.57
    )
    assert 0.43 < share(image, moved, contrast=(0.5, 0.9)) < 0.57
    assert 0.43 < share(image, moved, saturation=(0.5, 0.9)) < 0.57
    assert 0.40 < share(image, moved, hue=0.1) < 0.57
    assert share(image, moved, hue=0.1, p=0.0) == 0
    low = share(grey, lambda o: o[:, 0] < 0.5 - 1e-4, brightness=0.1)
    assert 0.18 < low < 0.32  # as often darker as brighter


def test_contrast_before_or_after_by_a_coin():
    """Contrast that clips before saturation is lost, after it is not."""
    image = jnp.array([[[0.9, 0.6, 0.6]]])
    op = photometric.photometric(0.0, (2.0, 2.0), (2.0, 2.0), 0.0, p=1.0)
    keys = jax.random.split(jax.random.key(1), 400)
    out = np.asarray(jax.jit(jax.vmap(lambda key: op(key, image)))(keys))[:, 0, 0, 1]
    levels, counts = np.unique(out.round(3), return_counts=True)
    np.testing.assert_allclose(levels, [0.6, 1.0], atol=1e-4)
    assert counts.min() > 150


def test_photometric_in_a_view():
    view = views.parse("segment_crop(32) | photometric | normalize", "data.views[0]")
    image = jnp.zeros((4, 4, 3), jnp.uint8)
    assert view.device(jax.random.key(0), image).shape == (4, 4, 3)
    for text in ("contrast=(2., 1.)", "hue=.7", "brightness=-1.", "p=2."):
        with pytest.raises(UsageError, match="photometric"):
            views.parse(f"photometric({text})", "data.views[0]")
    grey = photometric.photometric(p=1.0)(jax.random.key(0), jnp.ones((2, 2, 1)) / 2)
    assert grey.shape == (2, 2, 1)


# --- to look at, and what has no room ------------------------------------------------


def test_fit_gives_the_truth_to_look_at():
    image, known = annotated_sets.drawn([(8, 4, 28, 24), (40, 10, 60, 30)], 40, 80)
    _, found = run(
        "fit(20, longest=40, canvas=64, objects=3, mask_side=8)", image, known
    )
    np.testing.assert_allclose(found["boxes"][0], [4, 2, 14, 12])
    assert found["present"].tolist() == [True, True, False]
    assert found["masks"].shape == (3, 8, 8) and found["original"].tolist() == [40, 80]
    labels = np.full((20, 30), 7, np.uint8)
    _, found = run(
        "fit(10, longest=15, canvas=16)", labels_image(labels), Map(labels, "a")
    )
    assert (found["map"][:10, :15] == 7).all() and (found["map"][10:] == 255).all()
    assert found["map"].shape == (16, 16)


def labels_image(labels):
    return np.zeros((*labels.shape, 3), np.uint8)


def test_objects_without_room_are_warned_of_once(said):
    scene_targets.warn_of_dropped.cache_clear()
    image, known = annotated_sets.drawn([(8, 4, 28, 24), (40, 10, 60, 30)], 40, 80)
    for _ in range(2):
        run("short_side((40,), longest=80, canvas=80, objects=1)", image, known)
    assert len(said) == 1 and "has 2 visible objects, but objects=1" in said[0]
