"""RandAugment, erasing and crops of a single try: chance, and what they refuse."""

import math

import jax
import numpy as np
import pytest

from mixjax.data import color_ops, device_ops, erasing, host_ops, randaugment
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.sharding import meshes
from tests.conftest import USUAL

FIELD = "data.views[0]"
COUNT = 3000


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def images(count, height=12, width=10, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, channels), np.uint8)


def run(text, images, seed=0):
    view = parse(text, FIELD).device
    change = jax.jit(jax.vmap(view), compiler_options=USUAL)
    return np.asarray(change(keys_of(len(images), seed), images))


def near(share, p, count=COUNT):
    """Within four standard deviations of a fair draw."""
    return abs(share - p) <= 4 * math.sqrt(p * (1 - p) / count)


# --- RandAugment -------------------------------------------------------------------


def drawn(magnitude, noise, p):
    draw = lambda key: randaugment.draw_operation(key, magnitude, noise, p)
    return map(np.asarray, jax.jit(jax.vmap(draw))(keys_of(COUNT)))


def test_every_operation_is_as_likely():
    which, _ = drawn(9.0, 0.5, 0.5)
    assert near((which == -1).mean(), 0.5)
    for number in range(15):
        assert near((which == number).mean(), 0.5 / 15), randaugment.NAMES[number]
    assert set(which) == set(range(-1, 15))


def test_magnitudes_are_normal_and_cut_and_signs_are_fair():
    which, value = drawn(9.0, 0.5, 1.0)
    degrees = value[which == randaugment.NAMES.index("Rotate")]
    count = len(degrees)
    assert near((degrees > 0).mean(), 0.5, count)
    magnitude = abs(degrees) / 3
    assert magnitude.max() == pytest.approx(10)
    assert near((magnitude > 9.999).mean(), 0.0228, count)  # two deviations and more
    assert abs(np.median(magnitude) - 9) < 4 * 1.2533 * 0.5 / math.sqrt(count)
    low = np.quantile(magnitude, 0.1587)
    assert low == pytest.approx(8.5, abs=0.15)


def test_operations_draw_apart():
    """Pairs come with replacement, and one is no function of the other."""
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys_of(COUNT))
    draw = lambda key: randaugment.draw_operation(key, 9.0, 0.5, 1.0)[0]
    first, second = np.asarray(jax.jit(jax.vmap(jax.vmap(draw)))(keys)).T
    assert near((first == second).mean(), 1 / 15)
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == 225


def test_it_is_its_operations_one_after_the_other():
    pictures = images(40)
    found = run("randaugment(ops=3, p=.8)", pictures)
    change = jax.jit(randaugment.apply_operation, compiler_options=USUAL)
    for picture, key, wanted in zip(pictures, keys_of(40), found, strict=True):
        levels = picture.astype(np.float32)
        for one in jax.random.split(jax.random.fold_in(key, 0), 3):
            levels = change(levels, *randaugment.draw_operation(one, 9.0, 0.5, 0.8))
        np.testing.assert_array_equal(np.asarray(wanted * 255).round(), levels)


def test_whole_levels_come_out():
    """Also where floats come in."""
    pictures = images(256)
    found = run("randaugment", pictures / np.float32(1.01)) * 255
    np.testing.assert_allclose(found, found.round(), atol=1e-4)
    same = (found.round() == np.floor(pictures / 1.01 + 0.5)).all(axis=(1, 2, 3))
    assert 0.1 < same.mean() < 0.5  # none of two is a quarter; a few change little


def test_p_is_the_probability_of_each():
    pictures = images(16)
    np.testing.assert_allclose(run("randaugment(p=0)", pictures), pictures / 255)
    found = (run("randaugment(p=1)", pictures) * 255).round()
    assert (found != pictures).any(axis=(1, 2, 3)).mean() > 0.8


def test_grey_pictures():
    found = run("randaugment(p=1)", images(32, channels=1)) * 255
    assert found.shape == (32, 12, 10, 1)
    np.testing.assert_allclose(found, found.round(), atol=1e-4)


@pytest.mark.parametrize(
    "text, says",
    [
        ("randaugment(11)", r"magnitude=11 is not in 0 \.\. 10"),
        ("randaugment(noise=-1.)", r"noise=-1\.0 must be at least 0"),
        ("randaugment(ops=0)", r"ops=0 at least 1"),
        ("randaugment(p=2)", r"p=2 is not a probability"),
        ("erasing(1.5)", r"p=1\.5 is not a probability"),
        ("erasing(area=(.5, .1))", r"area=\(0\.5, 0\.1\) is not a range"),
        ("erasing(aspect=(0, 3))", r"aspect=\(0, 3\) is not a range"),
        ("crop(8, once=1)", r"crop takes once as bool, not 1"),
    ],
)
def test_what_is_refused(text, says):
    with pytest.raises(UsageError, match=says) as caught:
        parse(text, FIELD)
    assert str(caught.value).startswith(FIELD)


def test_histograms_are_the_same_on_every_device():
    """Counted as a CPU does, and as others do."""
    for plane in images(3, 40, 30)[..., 0] // np.array([1, 7, 255])[:, None, None]:
        wanted = np.bincount(plane.reshape(-1), minlength=256)
        for count in (
            color_ops.histogram_by_product,
            color_ops.histogram_by_scatter,
            color_ops.histogram,
        ):
            found = jax.jit(count)(plane.astype(np.float32))
            np.testing.assert_array_equal(found, wanted)


def test_nothing_crosses_examples():
    """Tables and places are looked up within a picture: no device asks another."""
    mesh = meshes.make(fsdp=1)
    view = parse("randaugment | normalize | erasing", FIELD).device
    inputs = jax.device_put((keys_of(8), images(8)), meshes.batched(mesh))
    text = jax.jit(jax.vmap(view)).lower(*inputs).compile().as_text()
    assert jax.device_count() > 1 and "gather(" in text
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in text


# --- erasing -----------------------------------------------------------------------

AREA, ASPECT = (0.02, 0.3333), (0.3, 3.33)


def boxes_of(height, width, area, aspect, count=COUNT):
    sample = lambda key: erasing.sample_box(key, height, width, area, aspect)
    return np.stack(jax.jit(jax.vmap(sample))(keys_of(count)), axis=1)


def timm_boxes(height, width, area, aspect, count=COUNT):
    """(top, left, height, width): at most ten tries of a box smaller than the image."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        for _ in range(10):
            pixels = rng.uniform(*area) * height * width
            tall = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
            h = round(math.sqrt(pixels * tall))
            w = round(math.sqrt(pixels / tall))
            if h < height and w < width:
                yield rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
                break
        else:
            yield 0, 0, 0, 0


@pytest.mark.parametrize(
    "size, area, aspect",
    [
        ((224, 224), AREA, ASPECT),
        ((32, 48), AREA, ASPECT),
        ((20, 60), AREA, ASPECT),
        ((64, 64), (0.1, 0.2), (2.0, 3.0)),  # tall ones
    ],
)
def test_erased_boxes_are_timms(size, area, aspect):
    """Quartiles of places, sides and shares agree within their noise."""
    found = boxes_of(*size, area, aspect)
    wanted = np.array(list(timm_boxes(*size, area, aspect)), float)
    assert (found[:, 2] < size[0]).all() and (found[:, 3] < size[1]).all()
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= size).all()
    for f, w in zip(found.T, wanted.T, strict=True):
        for q in (0.25, 0.5, 0.75):
            assert (
                abs((f <= np.quantile(w, q)).mean() - (w <= np.quantile(w, q)).mean())
                < 0.05
            )
    shares = [(b[:, 2] * b[:, 3]).mean() for b in (found, wanted)]
    assert shares[0] == pytest.approx(shares[1], rel=0.05)


def test_a_box_that_never_fits_is_none():
    assert (boxes_of(10, 10, (0.9, 1.0), (0.3, 0.3), 50)[:, 2] == 0).all()
    grey = np.full((50, 10, 10, 3), 128, np.uint8)
    out = run("erasing(1, area=(.9, 1.), aspect=(.3, .3))", grey)
    np.testing.assert_allclose(out, grey / 255.0, rtol=1e-6)


def test_erasing_is_one_box_of_noise():
    pictures = np.full((COUNT, 16, 16, 3), 128, np.uint8)
    found = run("erasing", pictures)
    erased = (abs(found - 128 / 255) > 1e-6).any(axis=3)  # [N, H, W]
    hit = erased.any(axis=(1, 2))
    assert near(hit.mean(), 0.25)
    for one in erased[hit][:100]:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        box = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all() and box.size == one.sum()
    noise = found[erased]  # [pixels, C], each channel its own
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.05


# --- crops of a single try ---------------------------------------------------------

RATIO = (3 / 4, 4 / 3)


def host_crops(height, width, scale, once, count=COUNT):
    rng = np.random.default_rng(0)
    draw = lambda: host_ops.sample_box(height, width, scale, RATIO, rng, once)
    return np.array([draw() for _ in range(count)])


def device_crops(height, width, scale, once, count=COUNT):
    sample = lambda key: device_ops.sample_box(key, height, width, scale, RATIO, once)
    return np.stack(jax.jit(jax.vmap(sample))(keys_of(count)), axis=1)


CROPS = {"host": host_crops, "device": device_crops}


@pytest.mark.parametrize("side", CROPS)
def test_a_single_try_is_cut_to_the_picture(side):
    """Area and log aspect are drawn once, whether or not the box fits."""
    height, width, scale = 50, 80, (0.5, 1.0)
    found = CROPS[side](height, width, scale, once=True)
    rng = np.random.default_rng(1)
    area = rng.uniform(*scale, COUNT) * height * width
    aspect = np.exp(rng.uniform(*np.log(RATIO), COUNT))
    h = np.minimum(np.sqrt(area / aspect).round(), height)
    w = np.minimum(np.sqrt(area * aspect).round(), width)
    assert near((found[:, 2] == height).mean(), (h == height).mean())
    assert 0.3 < (h == height).mean() < 0.9
    for f, wanted in ((found[:, 2], h), (found[:, 3], w)):
        assert f.mean() == pytest.approx(wanted.mean(), rel=0.02)
        assert f.std() == pytest.approx(wanted.std(), rel=0.07)
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= (height, width)).all()
    left = found[:, 1] / np.maximum(width - found[:, 3], 1)
    assert left.mean() == pytest.approx(0.5, abs=0.03) and left.max() > 0.95


@pytest.mark.parametrize("side", CROPS)
def test_tries_matter_only_where_the_first_does_not_fit(side):
    small = [CROPS[side](60, 60, (0.1, 0.5), once) for once in (True, False)]
    np.testing.assert_array_equal(*small)
    flat = [CROPS[side](20, 400, (0.9, 1.0), once, 50) for once in (True, False)]
    assert (flat[0][:, 2] == 20).all() and (flat[0][:, 3] > 70).all()
    assert (flat[1][:, 3] == round(20 * RATIO[1])).all()  # the centre, after ten


def test_a_single_try_of_a_line_is_a_pixel_not_nothing():
    for crops in CROPS.values():
        assert (crops(1, 300, (1e-6, 1e-6), True, 5)[:, 2:] == 1).all()


def test_crops_of_a_single_try_in_a_view():
    picture = images(1, 20, 400)[0]
    rng = np.random.default_rng(0)
    text = "decode_crop(8, scale=(.9, 1.), once={})"
    once, ten = (parse(text.format(x), FIELD).host for x in (True, False))
    middle = [ten(picture, rng) for _ in range(3)]
    assert all((m == middle[0]).all() for m in middle)
    moved = [once(picture, rng) for _ in range(3)]
    assert moved[0].shape == (8, 8, 3) and not (moved[0] == moved[1]).all()
    found = run("crop(8, scale=(.9, 1.), once=True)", np.repeat(picture[None], 4, 0))
    assert found.shape == (4, 8, 8, 3) and not (found[0] == found[1]).all()
