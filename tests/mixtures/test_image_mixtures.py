"""Image mixtures: who is how much in which image, for any size; the traps of the spec.

A mixture is tested whole, by what it makes of known images.
"""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.errors import UsageError
from mixjax.mixtures import erase, mixmask, pairs, unmix
from mixjax.objectives.branches import reordered
from mixjax.sharding import meshes

few = settings(max_examples=4, deadline=None)  # every size is compiled

MASKS = {
    "block": {"grid": 4, "kind": "block", "ratio": 0.3},
    "discrete": {"grid": 3, "kind": "discrete", "ratio": 0.7},
    "drawn ratio": {"grid": 4, "kind": "block", "ratio": (0.0, 1.0)},
}
PAIRED = {
    "mixup": (unmix, {"probability": 1.0, "gamma": 1.0}),
    "cutmix": (unmix, {"probability": 0.0, "gamma": 1.0}),
    "either": (unmix, {"probability": 0.5, "gamma": 1.0}),
    **{name: (mixmask, fields) for name, fields in MASKS.items()},
}
ERASED = {
    "zeros": (erase, MASKS["block"] | {"fill": "zero"}),
    "noise": (erase, MASKS["discrete"] | {"fill": "noise"}),
}


def plain(name, groups=1, permutation="reverse", shared=False, **fields):
    """A mixture by its name above, other `fields` first."""
    room, known = (PAIRED | ERASED)[name]
    paired = {"permutation": permutation} if name in PAIRED else {}
    fields = known | paired | fields
    return room.make(**fields, shared=shared, groups=groups)


def make(*args, **fields):
    return quick(plain(*args, **fields))


def quick(function, **layout):
    """Jitted; compiling is most of the work here, so it is done with less care."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=options, **layout)


def key(seed=0):
    return jax.random.key(seed)


# --- traps of the spec -------------------------------------------------------------


@pytest.mark.parametrize(
    "n, permutation", [(6, "reverse"), (7, "reverse"), (7, "random")]
)
@pytest.mark.parametrize("name", ["mixup", "cutmix", "block", "discrete"])
def test_lam_is_the_weight_of_the_own_image_in_both_orders(name, n, permutation):
    """Trap 1: image i is all one-hot i, the encoder the mean over pixels."""
    groups = 3
    one_hot = jnp.eye(groups * n)[:, None, None]
    images = jnp.broadcast_to(one_hot, (groups * n, 8, 9, groups * n))
    (mixed,) = make(name, groups, permutation)(key(n), images)
    features = mixed.images.mean(axis=(1, 2))
    inverse = jnp.argsort(mixed.partner, axis=1)
    turned = reordered({"features": features}, inverse)["features"]
    np.testing.assert_allclose(features.sum(axis=1), 1, atol=1e-6)
    fixed = np.asarray(mixed.partner == jnp.arange(n)).reshape(-1)
    assert 0 < (~fixed).sum()
    own = np.diagonal(features)[~fixed], np.diagonal(turned)[~fixed]
    np.testing.assert_allclose(own[0], mixed.lam[~fixed], atol=1e-6)
    np.testing.assert_allclose(own[1], 1 - mixed.lam[~fixed], atol=1e-6)
    np.testing.assert_allclose(np.diagonal(features)[fixed], 1, atol=1e-6)


@pytest.mark.parametrize("name", ERASED)
def test_two_erased_images_share_one_fill(name):
    """Both belong to image i; what one keeps the other lacks."""
    images = jax.random.normal(key(1), (6, 12, 13, 2))
    first, second = make(name, 3)(key(), images)
    assert first.partner is None and second.partner is None
    np.testing.assert_array_equal(first.mask, 1 - second.mask)
    np.testing.assert_allclose(first.lam, 1 - second.lam, atol=1e-6)
    fill = first.images + second.images - images
    kept = np.asarray(first.mask).repeat(2, axis=0) == 1
    np.testing.assert_array_equal(np.where(kept, first.images - images, 0), 0)
    if name == "zeros":
        np.testing.assert_allclose(fill, 0, atol=1e-6)
        return
    assert abs(fill.mean()) < 0.1 and abs(fill.std() - 1) < 0.1
    assert len(np.unique(fill)) == fill.size, "every pixel of every image its own"


@pytest.mark.parametrize("name", ["either", "discrete", "drawn ratio"])
def test_lam_is_the_exact_share(name):
    """Trap 2: of ones mixed with zeros, at 32 x 48 pixels, in 20 groups of two."""
    images = jnp.zeros((40, 32, 48, 1)).at[::2].set(1.0)
    (mixed,) = make(name, 20)(key(), images)
    assert len(np.unique(mixed.lam)) > 1, "or this would say little"
    share = mixed.images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(share[::2], mixed.lam[::2], atol=1e-6)
    np.testing.assert_allclose(share[1::2], 1 - mixed.lam[1::2], atol=1e-6)


def lams(mixture, groups, size):
    """[groups] lam for images of size x size; the images themselves are left out."""
    run = lambda rng: mixture(rng, jnp.zeros((groups, size, size, 1)))[0].lam
    return np.asarray(jax.jit(run)(key()))


def kept_shares(fields, count):
    """[count] shares of ones of a mask's cells."""
    draw = mixmask.make_mask(**fields)
    share = lambda key: draw(key, fields["grid"], fields["grid"]).mean()
    return np.asarray(quick(jax.vmap(share))(jax.random.split(key(), count)))


def test_lam_of_cutmix_by_distribution():
    lam = lams(plain("cutmix", 100_000), 100_000, 32)
    assert abs(lam.mean() - 0.701) < 0.002
    assert abs((lam < 0.5).mean() - 0.145) < 0.004
    assert abs((lam == 1).mean() - 0.004) < 0.001
    assert abs(lam.min() - 0.121) < 0.001


def test_lam_of_mixup_and_its_probability():
    lam = lams(plain("mixup", 20_000), 20_000, 2)
    assert abs(lam.mean() - 0.5) < 0.01 and abs(lam.std() - 12**-0.5) < 0.01
    lam = lams(plain("mixup", 20_000, gamma=0.5), 20_000, 2)
    assert abs(lam.mean() - 0.5) < 0.01 and abs(lam.std() - 8**-0.5) < 0.01
    # At 2 x 2 pixels a box has no pixel or one: all other values of lam are Mixup's.
    lam = lams(plain("mixup", 20_000, probability=0.3), 20_000, 2)
    assert abs((~np.isin(lam, [0.0, 0.25, 0.5, 0.75, 1.0])).mean() - 0.3) < 0.015


@pytest.mark.parametrize(
    "grid, ratio, mean, exact, empty",
    [  # section 4.2
        (4, 0.5, 0.499, 0.989, 0.0003),
        (4, 0.75, 0.743, 0.966, 0.007),
        (8, 0.5, 0.499, 0.958, 0),
        (8, 0.75, 0.748, 0.890, 0.0001),
    ],
)
def test_block_masks_have_the_published_law(grid, ratio, mean, exact, empty):
    """Trap 8: how much of the image is kept, not only on average."""
    count = 4000
    lam = kept_shares({"grid": grid, "kind": "block", "ratio": ratio}, count)
    assert abs(lam.mean() - mean) < 0.002
    error = (exact * (1 - exact) / count) ** 0.5
    assert abs((lam == ratio).mean() - exact) < 4 * error
    assert abs((lam == 0).mean() - empty) < 0.004
    assert lam.max() <= ratio, "never more than asked for"


def test_block_masks_of_two_by_two_cells_are_empty():
    """Trap 8, and why they are refused."""
    sample = lambda key: mixmask.block(key, 2, 2, 2)
    masks = np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(key(), 4000)))
    sizes = masks.sum(axis=(1, 2))
    assert abs((sizes == 0).mean() - 0.94) < 0.015
    assert abs((sizes == 2).mean() - 0.036) < 0.012
    for ratio in (0.25, 0.5, 0.75, (0.0, 1.0)):
        with pytest.raises(UsageError, match="start at 4, .* take 'discrete'"):
            make("block", grid=2, ratio=ratio)


def test_discrete_masks_are_never_of_one_kind():
    """At 2 x 2 cells and 0.5: one, two or three cells by 2 : 3 : 2."""
    lam = kept_shares({"grid": 2, "kind": "discrete", "ratio": 0.5}, 7000)
    shares = [(lam == x).mean() for x in (0, 0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(shares, [0, 2 / 7, 3 / 7, 2 / 7, 0], atol=0.025)
    # Binomial but for all or none; `ratio` is the share that is kept.
    lam = kept_shares({"grid": 2, "kind": "discrete", "ratio": 0.2}, 7000)
    law = np.array([4 * 0.2 * 0.8**3, 6 * 0.2**2 * 0.8**2, 4 * 0.2**3 * 0.8])
    shares = [(lam == x).mean() for x in (0.25, 0.5, 0.75)]
    np.testing.assert_allclose(shares, law / law.sum(), atol=0.025)


@pytest.mark.parametrize("kind", mixmask.KINDS)
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.25, 0.75)])
def test_a_ratio_is_drawn_between_two(kind, low, high):
    """One for each mask; of block masks at least one cell is asked for."""
    lam = kept_shares({"grid": 8, "kind": kind, "ratio": (low, high)}, 2000)
    assert abs(lam.mean() - 0.5) < 0.03
    spread = (high - low) * 12**-0.5
    binomial = (0.25 - spread**2) / 64 if kind == "discrete" else 0
    assert abs(lam.std() - (spread**2 + binomial) ** 0.5) < 0.015


def test_pixels_show_the_cell_they_start_in():
    """Trap 8: 48 cells on 224 pixels; nearest by centres would start 5, 4, 5, 5, 4."""
    cells = jnp.broadcast_to(jnp.arange(48), (48, 48))
    seen = np.asarray(mixmask.upsample(cells, 224, 100))
    assert seen.shape == (224, 100) and (seen == seen[0]).all()
    across = np.asarray(mixmask.upsample(cells, 100, 224))[0]
    assert np.bincount(across)[:6].tolist() == [5, 5, 4, 5, 5, 4]
    np.testing.assert_array_equal(across, np.arange(224) * 48 // 224)
    down = np.asarray(mixmask.upsample(cells.T, 224, 100))[:, 0]
    np.testing.assert_array_equal(down, across)


# --- boxes --------------------------------------------------------------------------


def test_an_empty_side_may_be_widened_to_one_pixel():
    """Both parts of the image then have pixels, wherever the centre is."""
    for row, column in np.ndindex(4, 5):
        for lam in (0.999, 0.6, 1e-6):
            edges, own = unmix.box(
                jnp.float32(lam), jnp.array([row, column]), 4, 5, widen=True
            )
            mask = unmix.mask_of_box(edges, 4, 5)
            assert 0 < mask.sum() < 20 and abs(mask.mean() - own) < 1e-6
            assert mask[row, column] == 0 or lam < 0.5
    edges, own = unmix.box(jnp.float32(0.999), jnp.array([3, 4]), 4, 5, widen=False)
    assert own == 1 and unmix.mask_of_box(edges, 4, 5).all()


@few
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1, width=32), st.data())
def test_boxes_follow_the_formula(height, width, lam, data):
    """Section 3.3, in whole numbers."""
    row = data.draw(st.integers(0, height - 1))
    column = data.draw(st.integers(0, width - 1))
    edges, own = unmix.box(
        jnp.float32(lam), jnp.array([row, column]), height, width, widen=False
    )
    cut = np.sqrt(np.float32(1) - np.float32(lam))
    half = [int(size * cut) // 2 for size in (height, width)]
    want = max(row - half[0], 0), min(row + half[0], height)
    want += max(column - half[1], 0), min(column + half[1], width)
    assert tuple(int(e) for e in edges) == want
    inside = (want[1] - want[0]) * (want[3] - want[2])
    assert own == pytest.approx(1 - inside / (height * width), abs=1e-6)
    mask = np.asarray(unmix.mask_of_box(edges, height, width))
    assert not mask[want[0] : want[1], want[2] : want[3]].any()
    assert (mask == 0).sum() == inside


def test_centres_are_all_pixels_alike():
    centres = jax.vmap(lambda k: unmix.draw_centre(k, 3, 5))(
        jax.random.split(key(), 15_000)
    )
    share = (
        np.histogram2d(*np.asarray(centres).T, bins=(range(4), range(6)))[0] / 15_000
    )
    np.testing.assert_allclose(share, 1 / 15, atol=0.01)


# --- for any size -------------------------------------------------------------------


@st.composite
def batches(draw, names):
    name = draw(st.sampled_from(sorted(names)))
    groups, n = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    shape = groups * n, draw(st.integers(4, 11)), draw(st.integers(4, 11)), 2
    images = jax.random.normal(key(draw(st.integers(0, 9))), shape)
    return name, groups, draw(st.sampled_from(pairs.PERMUTATIONS)), images


@few
@given(batches(PAIRED))
def test_images_are_what_the_mask_says(batch):
    name, groups, permutation, images = batch
    (mixed,) = make(name, groups, permutation)(key(), images)
    n = len(images) // groups
    size = images.shape[1:3]
    assert mixed.mask.shape == (groups, *size, 1) and mixed.mask.dtype == jnp.float32
    assert mixed.lam.shape == (groups * n,) and mixed.lam.dtype == jnp.float32
    assert mixed.partner.shape == (groups, n) and mixed.partner.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(mixed.partner, axis=1), [range(n)] * groups)
    mean = np.asarray(mixed.mask).mean(axis=(1, 2, 3)).repeat(n)
    np.testing.assert_allclose(mixed.lam, mean, atol=1e-6)
    own = np.asarray(images)
    place = np.asarray(mixed.partner) + n * np.arange(groups)[:, None]
    other = own[place.reshape(-1)]
    mask = np.asarray(mixed.mask).repeat(n, axis=0)
    want = mask * own + (1 - mask) * other
    np.testing.assert_allclose(mixed.images, want, atol=1e-6)
    assert (mixed.images >= np.minimum(own, other) - 1e-6).all(), "convex"
    assert (mixed.images <= np.maximum(own, other) + 1e-6).all(), "convex"


@pytest.mark.parametrize(
    "name, permutation", [("either", "random"), ("block", "reverse")]
)
def test_groups_are_separate_calls(name, permutation):
    """Group g is what a call with its images and its key gives."""
    images = jax.random.normal(key(1), (9, 8, 9, 2))
    same = make(name, 3, permutation, shared=True)(key(), images)
    own = make(name, 3, permutation)(key(), images)
    alone = make(name, 1, permutation, shared=True)
    for g in range(3):
        rows = slice(3 * g, 3 * g + 3)
        equal_rows(same, alone(key(), images[rows]), rows, g)
        equal_rows(own, alone(jax.random.fold_in(key(), g), images[rows]), rows, g)


def equal_rows(whole, part, rows, g):
    for many, one in zip(whole, part, strict=True):
        np.testing.assert_array_equal(many.images[rows], one.images)
        np.testing.assert_array_equal(many.lam[rows], one.lam)
        np.testing.assert_array_equal(many.mask[g], one.mask[0])
        np.testing.assert_array_equal(many.partner[g], one.partner[0])


@pytest.mark.parametrize("name", ["either", "discrete", "noise"])
def test_shared_is_one_draw_and_else_each_group_has_its_own(name):
    images = jax.random.normal(key(1), (32, 12, 12, 1))
    same = make(name, 8, "random", shared=True)(key(), images)
    other = make(name, 8, "random")(key(), images)
    assert all((m.mask == m.mask[:1]).all() for m in same)
    assert all(not (m.mask == m.mask[:1]).all() for m in other)
    if name in PAIRED:
        assert (same[0].partner == same[0].partner[:1]).all()
        assert not (other[0].partner == other[0].partner[:1]).all()


@pytest.mark.parametrize("name", ["mixup", "zeros"])
def test_bfloat16_stays(name):
    images = jax.random.normal(key(1), (4, 8, 8, 3)).astype(jnp.bfloat16)
    whole = make(name)(key(), images.astype(jnp.float32))
    for half, full in zip(make(name)(key(), images), whole, strict=True):
        assert half.images.dtype == jnp.bfloat16 and half.lam.dtype == jnp.float32
        rounded = full.images.astype(jnp.bfloat16)
        np.testing.assert_array_equal(half.images, rounded)


# --- devices ------------------------------------------------------------------------


SENDS = re.compile(
    r" = (.*?) (all-gather|all-reduce|all-to-all|collective-\w+|reduce-scatter)[\w-]*\("
)


def on_devices(name, groups, permutation, **fields):
    """(what is sent, images) of a mixture whose batch lies on eight devices."""
    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    mixture = plain(name, groups, permutation, **fields)
    images = lambda rng, x: [m.images for m in mixture(rng, x)]
    run = quick(images, in_shardings=(everywhere, cut), out_shardings=cut)
    run = run.lower(key(), BATCH).compile()
    return SENDS.findall(run.as_text()), run(key(), jax.device_put(BATCH, cut))


BATCH = np.random.default_rng(0).normal(size=(32, 10, 11, 3)).astype(np.float32)
LAID_OUT = [("cutmix", "reverse"), ("mixup", "random"), ("discrete", "reverse")]
LAID_OUT += [("block", "random"), ("noise", "reverse")]


@pytest.mark.parametrize("name, permutation", LAID_OUT)
def test_eight_devices_mix_alike_and_send_nothing(name, permutation):
    sent, images = on_devices(name, 16, permutation)
    assert not sent
    for many, alone in zip(
        images, make(name, 16, permutation)(key(), BATCH), strict=True
    ):
        np.testing.assert_array_equal(many, alone.images)


def test_other_gammas_need_only_a_word_of_when_to_stop():
    """Beta is drawn by rejection; a group's images still stay where they are."""
    sent, images = on_devices("mixup", 16, "reverse", gamma=0.6)
    assert set(sent) <= {("pred[]", "all-reduce")}
    (alone,) = make("mixup", 16, gamma=0.6)(key(), BATCH)
    np.testing.assert_array_equal(images[0], alone.images)


def test_a_group_across_devices_is_the_same_but_sends_images():
    sent, images = on_devices("block", 1, "reverse")
    assert "collective-permute" in {kind for _, kind in sent}
    (alone,) = make("block", 1)(key(), BATCH)
    np.testing.assert_array_equal(images[0], alone.images)


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("either", {"probability": 1.5}, r"probability=1\.5 must lie in 0 \.\. 1"),
        ("either", {"gamma": 0}, "gamma=0 must be above 0"),
        ("either", {"permutation": "revers"}, "'revers' .* did you mean 'reverse'"),
        ("either", {"groups": 0}, "groups=0 must be at least 1"),
        ("zeros", {"groups": 0}, "groups=0 must be at least 1"),
        ("block", {"kind": "blocks"}, "'blocks' .* did you mean 'block'"),
        ("block", {"grid": 1}, "grid=1 cannot be mixed"),
        ("discrete", {"grid": 0}, "grid=0 cannot be mixed"),
        ("block", {"ratio": 1.0}, r"ratio=1\.0 must lie between 0 and 1"),
        ("discrete", {"ratio": 0}, "ratio=0 must lie between 0 and 1"),
        ("block", {"ratio": (0.7, 0.2)}, r"ratio=\(0\.7, 0\.2\) must be one number"),
        ("block", {"ratio": [0.2, 0.3, 0.4]}, "must be one number or two"),
        ("block", {"ratio": 0.2}, "keeps 3 of 4 x 4 cells.* take 'discrete'"),
        ("zeros", {"fill": "mean"}, "fill 'mean' does not exist"),
    ],
)
def test_bad_settings_are_refused_at_once(name, fields, message):
    with pytest.raises(UsageError, match=message):
        make(name, **fields)


@pytest.mark.parametrize("name", ["either", "block", "zeros", "noise"])
def test_a_batch_that_does_not_divide_is_refused(name):
    with pytest.raises(UsageError, match="groups=3 .* of 10 images; 1, 2, 5 would"):
        make(name, 3)(key(), jnp.zeros((10, 8, 8, 1)))


@pytest.mark.parametrize("name", ["block", "discrete", "zeros"])
def test_a_grid_finer_than_the_image_is_refused(name):
    with pytest.raises(UsageError, match=r"grid=9 .* 12 x 8 pixels; take 8 or less"):
        make(name, grid=9)(key(), jnp.zeros((2, 12, 8, 1)))
