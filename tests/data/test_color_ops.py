"""Jitter, gray, solarize and blur as views: chance, order, and what they refuse."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from mixjax.data import affine_ops, blur_ops, color_ops, jitter
from mixjax.data.views import parse
from mixjax.errors import UsageError

FIELD = "data.views[0]"
KINDS = ("brightness", "contrast", "saturation", "hue")
BLENDS = (color_ops.brightness, color_ops.contrast, color_ops.saturation)


def noise(count, height=6, width=5, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, channels), np.uint8)


def run(text, images, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return np.asarray(jax.jit(jax.vmap(parse(text, FIELD).device))(keys, images))


def same(images):
    """The same picture, 3000 times."""
    return np.repeat(images[:1], 3000, axis=0)


def near(share, p, count=3000):
    """Within four standard deviations of a fair draw."""
    return abs(share - p) <= 4 * math.sqrt(p * (1 - p) / count)


# --- probabilities -----------------------------------------------------------------

CERTAIN = {
    "jitter(.4, .4, .4, .1{})": None,
    "gray({})": color_ops.grayscale,
    "solarize(100{})": lambda image: color_ops.solarize(image, 100),
    "blur((1, 1){})": lambda image: blur_ops.pillow_blur(image, 1.0, 1.0),
    "blur((1, 1), kind='gaussian'{})": lambda image: blur_ops.gaussian_blur(
        image, 1.0, 1.0
    ),
}


def with_p(text, p):
    return text.format(f"p={p}" if "({}" in text else f", p={p}")


@pytest.mark.parametrize("text", CERTAIN)
def test_an_operation_has_its_probability(text):
    images = same(noise(1))
    for p in (0, 0.3, 1):
        out = run(with_p(text, p), images)
        kept = abs(out - images / 255.0).max(axis=(1, 2, 3)) < 1e-6
        assert near(1 - kept.mean(), p), p


@pytest.mark.parametrize("text", [t for t in CERTAIN if CERTAIN[t]])
def test_a_certain_operation_is_its_function(text):
    images = noise(4)
    wanted = jax.vmap(CERTAIN[text])(images.astype(np.float32) / 255)
    np.testing.assert_allclose(run(with_p(text, 1), images), wanted, atol=1e-6)


def test_jitter_by_nothing_changes_nothing():
    images = np.concatenate([noise(8), np.zeros((1, 6, 5, 3), np.uint8)])
    images = np.concatenate([images, np.full((1, 6, 5, 3), 255, np.uint8)])
    out = run("jitter(0, 0, 0, 0)", images)
    np.testing.assert_allclose(out, images / 255.0, atol=1e-6)


def test_a_key_of_its_own_for_every_example_and_operation():
    images = same(noise(1))[:200]
    out = run("jitter(.4, .4, .4, .1)", images)
    assert len({row.tobytes() for row in out}) == 200
    turned = run("gray(.5) | solarize(0, .5)", images)  # 1 - 1 = 0: solarized twice
    kinds = {row.tobytes() for row in turned}
    assert len(kinds) == 4  # all four pairs, so neither follows the other


def test_keys_decide_alone():
    """The same keys make the same images, whoever is beside them in the batch."""
    text = "jitter(.4, .4, .4, .1, p=.8) | gray(.2) | blur(p=.5) | solarize(128, .2)"
    op = jax.jit(jax.vmap(parse(text, FIELD).device))
    keys, images = jax.random.split(jax.random.key(0), 6), noise(6)
    whole = np.asarray(op(keys, images))
    turned = np.array([3, 5, 0, 1, 4, 2])
    np.testing.assert_array_equal(op(keys[turned], images[turned]), whole[turned])
    changed = noise(12)[6:].copy()
    changed[0] = images[0]
    np.testing.assert_array_equal(op(keys, changed)[0], whole[0])


# --- jitter ------------------------------------------------------------------------


def one_by_one(image, order, factors, shift):
    """The four operations after each other, as a loop over names."""
    for name in order:
        if name == "hue":
            image = color_ops.hue(image, shift)
        else:
            at = KINDS.index(name)
            image = BLENDS[at](image, factors[at])
    return image


ORDERS = list(itertools.permutations(KINDS))
STRONG = (np.array([1.7, 0.3, 2.2], np.float32), np.float32(0.3))


@pytest.fixture(scope="module")
def in_all_orders():
    """One picture, jittered strongly in each of the 24 orders."""
    image = noise(1)[0].astype(np.float32) / 255
    ranks = np.array([[order.index(k) for k in KINDS] for order in ORDERS])
    run = lambda r: jitter.apply_in_order(image, r, *map(jnp.asarray, STRONG))
    wanted = [one_by_one(image, order, *STRONG) for order in ORDERS]
    return np.asarray(jax.jit(jax.vmap(run))(ranks)), np.stack(wanted)


def test_every_order_is_that_order(in_all_orders):
    """Strong enough that no two orders make the same picture."""
    found, wanted = in_all_orders
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    gaps = abs(wanted[:, None] - wanted[None]).max(axis=(2, 3, 4))
    assert (gaps + np.eye(24)).min() > 0.01


def test_all_orders_are_as_likely(monkeypatch):
    """Chi-square over 24 orders; 53 is exceeded by chance once in 3,000."""
    seen = lambda image, ranks, factors, shift: ranks.astype(jnp.float32)
    monkeypatch.setattr(jitter, "apply_in_order", seen)
    ranks = drawn(jitter.jitter(0.4, 0.4, 0.4, 0.1), 24_000, 4)
    _, counts = np.unique(ranks, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 53


def drawn(op, count, size):
    """What a patched `apply_in_order` returns for `count` keys, [count, size]."""
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.jit(jax.vmap(lambda k: op(k, jnp.zeros(size))))(keys))


def distance(sample, low, high):
    """Kolmogorov and Smirnov's statistic for U(low, high), times the root of n."""
    n = len(sample)
    at = (np.sort(sample) - low) / (high - low)
    gap = max((np.arange(1, n + 1) / n - at).max(), (at - np.arange(n) / n).max())
    return gap * math.sqrt(n)


def test_factors_are_uniform_and_apart(monkeypatch):
    """2.2 is exceeded by chance once in 10,000."""
    seen = lambda image, ranks, factors, shift: jnp.append(factors, shift)
    monkeypatch.setattr(jitter, "apply_in_order", seen)
    values = drawn(jitter.jitter(0.4, 0.8, 1.5, 0.1), 3000, 4)
    ranges = [(0.6, 1.4), (0.2, 1.8), (0.0, 2.5), (-0.1, 0.1)]
    for column, (low, high) in zip(values.T, ranges, strict=True):
        assert distance(column, low, high) < 2.2
    correlation = np.corrcoef(values.T) - np.eye(4)
    assert abs(correlation).max() < 0.08


def test_jitter_is_applied_whatever_it_drew(monkeypatch):
    """Neither order nor factors depend on whether an example is jittered."""
    seen = lambda image, ranks, factors, shift: jnp.hstack([factors, shift, ranks[3]])
    monkeypatch.setattr(jitter, "apply_in_order", seen)
    values = drawn(jitter.jitter(0.4, 0.4, 0.4, 0.1, p=0.5), 6000, 5)
    used = values.any(axis=1)
    assert near(used.mean(), 0.5, 6000)
    for column, reach in zip(values[used].T[:4], (0.4, 0.4, 0.4, 0.1), strict=True):
        middle = 0.0 if reach == 0.1 else 1.0
        assert distance(column, middle - reach, middle + reach) < 2.2
    assert near((values[used][:, 4] == 0).mean(), 0.25, used.sum())


def test_grey_pictures_have_no_hue_and_no_saturation():
    images = noise(4, channels=1)
    out = run("jitter(0, 0, .9, .5) | gray(1)", images)
    np.testing.assert_allclose(out, images / 255.0, atol=1e-6)
    both = jax.vmap(lambda i: color_ops.contrast(i, 0.5))(images / np.float32(255))
    wide = jax.vmap(lambda i: color_ops.contrast(i, 0.5))(
        np.repeat(images, 3, axis=3) / np.float32(255)
    )
    np.testing.assert_allclose(np.repeat(both, 3, axis=3), wide, atol=1e-6)


def test_two_channels_are_no_colour():
    with pytest.raises(ValueError, match="1 .grey. or 3 .RGB. channels, not 2"):
        run("gray(1)", noise(1, channels=2))


# --- histograms --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["equalize", "autocontrast"])
@pytest.mark.parametrize("size", [(1, 1), (3, 100), (16, 16), (90, 70)])
def test_histograms_of_few_levels_and_of_many(name, size):
    """A single level, two, a few, all; more levels than pixels and fewer."""
    rng = np.random.default_rng(1)
    for known in ([77], [3, 250], [9, 10, 11, 200], range(256)):
        image = rng.choice(np.array(known, np.uint8), (*size, 3))
        out = jax.jit(getattr(color_ops, name))(image.astype(np.float32) / 255)
        wanted = np.asarray(getattr(ImageOps, name)(Image.fromarray(image)))
        gap = abs(np.asarray(color_ops.levels(out)) - wanted)
        assert gap.max() <= (name == "autocontrast")  # which Pillow truncates


# --- blur --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", blur_ops.KINDS)
def test_sigma_is_uniform_whether_or_not_it_is_used(kind, monkeypatch):
    seen = lambda image, sigma, max_sigma: jnp.full_like(image, sigma)
    monkeypatch.setitem(blur_ops.KINDS, kind, seen)
    sigma = drawn(blur_ops.blur((0.1, 2.0), p=0.5, kind=kind), 6000, 1)[:, 0]
    assert near((sigma > 0).mean(), 0.5, 6000)
    assert distance(sigma[sigma > 0], 0.1, 2.0) < 2.2


@pytest.mark.parametrize("kind", blur_ops.KINDS)
def test_a_blur_spreads_a_point_by_its_sigma(kind):
    """Weights sum to 1 and have the wanted variance in each direction."""
    image = np.zeros((41, 41, 1), np.float32)
    image[20, 20] = 1
    for sigma in (1.0, 1.5, 2.0):
        out = np.asarray(blur_ops.KINDS[kind](image, sigma, max_sigma=2.0))[:, :, 0]
        assert abs(out.sum() - 1) < 1e-5
        np.testing.assert_allclose(out, out.T, atol=1e-7)
        variance = (out.sum(axis=0) * (np.arange(41) - 20) ** 2).sum()
        assert abs(variance - sigma**2) < 0.03 * sigma**2


# --- places ------------------------------------------------------------------------


def test_places_by_nothing_and_by_whole_pixels():
    image = noise(1, 6, 7)[0].astype(np.float32) / 255
    fill = (0.5, 0.25, 0.0)
    for filter in affine_ops.KERNELS:
        options = {"filter": filter, "fill": fill}
        for change in (affine_ops.rotate, affine_ops.shear_x, affine_ops.translate_y):
            np.testing.assert_allclose(change(image, 0.0, **options), image, atol=2e-6)
        moved = affine_ops.affine(image, affine_ops.translation(2.0, -1.0), **options)
        np.testing.assert_allclose(moved[1:, :-2], image[:-1, 2:], atol=2e-6)
        np.testing.assert_array_equal(moved[0], np.tile(np.float32(fill), (7, 1)))
        np.testing.assert_array_equal(
            moved[:, -2:], np.tile(np.float32(fill), (6, 2, 1))
        )


def test_a_quarter_turn_is_counter_clockwise():
    image = noise(1, 6, 6)[0].astype(np.float32) / 255
    out = affine_ops.rotate(image, 90.0, filter="bilinear", fill=(0.0,) * 3)
    np.testing.assert_allclose(out, np.rot90(image), atol=1e-5)


# --- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, says",
    [
        ("jitter(.4, .4, .4)", "missing a required argument: 'hue'"),
        ("jitter(.4, .4, .4, .6)", "hue=0.6 is not in 0 .. 0.5"),
        ("jitter(-.4, .4, .4, .1)", "brightness=-0.4 is not in 0 .. inf"),
        ("jitter(.4, .4, .4, .1, p=80)", "p=80 is not a probability"),
        ("jitter((.6, 1.4), .4, .4, .1)", "takes brightness as float"),
        ("jiter(.4, .4, .4, .1)", "no operation 'jiter'; did you mean 'jitter'"),
        ("gray(2)", "p=2 is not a probability"),
        ("grey(.2)", "no operation 'grey'; did you mean 'gray'"),
        ("solarize(300)", "threshold=300 is not in 0 .. 256"),
        ("solarize(.5)", "takes threshold as int, not 0.5"),
        ("blur(2)", "takes sigma as tuple[float, float], not 2"),
        ("blur((0, 2))", "sigma=(0, 2) is not a range of positive numbers"),
        ("blur(kind='box')", "blur kind 'box' does not exist; known: gaussian, pillow"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text, says):
    with pytest.raises(UsageError) as caught:
        parse(text, FIELD)
    assert str(caught.value).startswith(FIELD) and says in str(caught.value)
    assert "\n" not in str(caught.value)


RECIPES = {
    "crop(8, scale=(.08, 1), filter='bilinear') | flip | jitter(.4, .4, .4, .1, p=.8)"
    " | gray(.2) | normalize": (12, 9),
    "jitter(.4, .4, .4, .1, p=.8) | gray(.1) | crop(8, scale=(.2, 1)) | flip"
    " | normalize": (12, 9),
    "jitter(.4, .4, .4, .1, p=.8) | gray(.2) | blur(p=.5) | flip | normalize": (8, 8),
}


@pytest.mark.parametrize("text", RECIPES)
def test_the_views_of_recipes(text):
    out = run(text, noise(16, *RECIPES[text]))
    assert out.shape == (16, 8, 8, 3) and np.isfinite(out).all()
    view = parse(text, FIELD)
    back = out * np.array(view.std) + np.array(view.mean)
    assert back.min() > -1e-5 and back.max() < 1 + 1e-5
