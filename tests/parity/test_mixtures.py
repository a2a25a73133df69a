"""Mixed images and lam for given draws, and the law of MixMask's masks.

Against the Un-Mix and MixMask code, and against a float64 reference of the formulas.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.mixtures import erase, mixmask, pairs, unmix
from mixjax.objectives.branches import reordered
from tests.parity.torch_names import images

BATCHES = ("even", "odd")
PERMUTATIONS = {"reversal": "reverse", "random": "random"}  # their name: ours


@functools.partial(jax.jit, static_argnames="permutation")
def mix(x, lam, mask, partner, permutation):
    """One group, its draw given; `mask` [H, W], or lam of Mixup."""
    mask = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), x.shape[1:3])
    one = (jnp.asarray(a)[None] for a in (lam, mask, partner))
    return pairs.mix(x, *one, permutation)


def cut(lam, centre, shape):
    """Box, exact lam and mask of a drawn lam and centre."""
    edges, own = jax.jit(unmix.box, static_argnums=(2, 3, 4))(
        jnp.float32(lam), jnp.asarray(centre), *shape, False
    )
    return edges, own, unmix.mask_of_box(edges, *shape)


def torch(x):
    """[B, H, W, C] -> [B, C, H, W]"""
    return np.asarray(x).transpose(0, 3, 1, 2)


def given(ref, batch):
    """Images, and {their name: (our name, partners)} of the permutations."""
    x = jnp.asarray(images(ref[f"in/{batch}/x"]))
    partners = {p: ref[f"in/{batch}/perm_{p}"] for p in PERMUTATIONS}
    return x, {p: (PERMUTATIONS[p], partners[p]) for p in partners}


@pytest.mark.parametrize("batch", BATCHES)
def test_partners_in_reverse(reference, batch):
    ref = reference("image_mixtures")
    theirs = ref[f"in/{batch}/perm_reversal"]
    ours = pairs.draw_partner(jax.random.key(0), len(theirs), "reverse")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("batch", BATCHES)
def test_mixup(reference, batch):
    ref = reference("image_mixtures")
    x, permutations = given(ref, batch)
    lam = ref["in/mixup_lam"]
    for name, (ours, partner) in permutations.items():
        mixed = mix(x, lam, lam, partner, ours)
        ref.check(f"{batch}/mixup/{name}/mixed", torch(mixed.images))
        np.testing.assert_array_equal(mixed.lam, np.float32(lam))


@pytest.mark.parametrize("batch", BATCHES)
def test_cutmix(reference, batch):
    ref = reference("image_mixtures")
    x, permutations = given(ref, batch)
    centres = ref[f"in/{batch}/cutmix_center"]
    drawn = zip(ref[f"in/{batch}/cutmix_lam_raw"], centres, strict=True)
    cuts = [cut(lam, centre, x.shape[1:3]) for lam, centre in drawn]
    ref.check(f"{batch}/cutmix/box", np.array([edges for edges, *_ in cuts]))
    ref.check(f"{batch}/cutmix/lam", np.array([own for _, own, _ in cuts]))
    for i, (_, own, mask) in enumerate(cuts):
        ref.check(f"{batch}/cutmix/mask_{i}", mask)
        for name, (ours, partner) in permutations.items():
            mixed = mix(x, own, mask, partner, ours)
            ref.check(f"{batch}/cutmix/{name}/mixed_{i}", torch(mixed.images))
    sides = np.array([(b - t, r - le) for (t, b, le, r), *_ in cuts])
    assert (sides == 0).any(), "an empty box is among them"


@pytest.mark.parametrize("batch", BATCHES)
def test_mixmask_grids(reference, batch):
    ref = reference("image_mixtures")
    x, permutations = given(ref, batch)
    for grid in ref["hp/grids"]:
        cells = jnp.asarray(ref[f"in/grid{grid}"], jnp.float32)
        mask = mixmask.upsample(cells, *x.shape[1:3])
        ref.check(f"{batch}/mixmask/grid{grid}/mask", mask)
        ref.check(f"{batch}/mixmask/grid{grid}/lam", mask.mean())
        for name, (ours, partner) in permutations.items():
            mixed = mix(x, mask.mean(), mask, partner, ours)
            key = f"{batch}/mixmask/grid{grid}/{name}/mixed"
            ref.check(key, torch(mixed.images))


@pytest.mark.parametrize("fill", erase.FILLS)
@pytest.mark.parametrize("batch", BATCHES)
def test_erase(reference, batch, fill):
    ref = reference("image_mixtures")
    x, _ = given(ref, batch)
    noise = jnp.asarray(images(ref[f"in/{batch}/noise"]))[None]
    blank = noise if fill == "noise" else jnp.zeros(())
    mask = mixmask.upsample(jnp.asarray(ref["in/grid4"], jnp.float32), *x.shape[1:3])
    for name, kept in (("first", mask[None]), ("second", 1 - mask[None])):
        erased = jax.jit(erase.erase)(x, kept, blank)
        ref.check(f"{batch}/erase/{fill}/{name}", torch(erased.images))
        np.testing.assert_allclose(erased.lam, kept.mean(), atol=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", PERMUTATIONS)
def test_identity_encoder(reference, batch, name):
    """Whose weight is in which feature, in normal and in reverse order."""
    ref = reference("image_mixtures")
    n = ref[f"out/identity/{batch}/{name}/normal"].shape[0]
    partner = np.arange(n, dtype=np.int32)[::-1]
    if name == "random":
        partner = ref[f"in/identity/{batch}/perm_random"]
    lam = ref["in/mixup_lam"]
    mixed = mix(jnp.eye(n).reshape(n, 1, 1, n), lam, lam, partner, PERMUTATIONS[name])
    features = mixed.images.reshape(n, n)
    ref.check(f"identity/{batch}/{name}/normal", features)
    inverse = jnp.argsort(mixed.partner, axis=1)
    turned = reordered({"features": features}, inverse)["features"]
    ref.check(f"identity/{batch}/{name}/reverse", turned)


def test_upsampling_to_no_multiple(reference):
    ref = reference("image_mixtures")
    cells = jnp.asarray(ref["in/grid48"], jnp.float32)
    shape = ref["out/upsample_48_224/mask"].shape
    mask = mixmask.upsample(cells, *shape)
    ref.check("upsample_48_224/mask", mask)
    ref.check("upsample_48_224/lam", mask.mean())
    ref.check("upsample_48_224/grid_mean", cells.mean())
    numbers = jnp.broadcast_to(jnp.arange(len(cells)), cells.shape)
    widths = np.bincount(mixmask.upsample(numbers, *shape)[0]).astype(np.int32)
    ref.check("upsample_48_224/column_widths", widths)


# --- official code -----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_unmix(reference, mode):
    ref = reference("unmix")
    x = jnp.asarray(images(ref["in/im1"]))
    own = mask = ref["in/mixup_lam"]
    if mode == "cutmix":
        drawn = ref["in/cutmix_lam_raw"], ref["in/cutmix_center_xy"]
        (top, bottom, left, right), own, mask = cut(*drawn, x.shape[1:3])
        box = np.array([top, left, bottom, right])
        ref.check("cutmix_box_x1_y1_x2_y2", box)
    partner = pairs.draw_partner(jax.random.key(0), len(x), "reverse")
    mixed = mix(x, own, mask, partner, "reverse")
    ref.check(f"mixed_images_{mode}", torch(mixed.images))
    ref.check(f"lam_{mode}", mixed.lam[0])


def test_mixmask(reference):
    ref = reference("mixmask")
    x = jnp.asarray(images(ref["in/im1"]))
    cells = jnp.asarray(ref["in/grid_mask"], jnp.float32)
    mask = mixmask.upsample(cells, *x.shape[1:3])
    ref.check("mask_upsampled", mask)
    ref.check("lam_mask", mask.mean())
    flip = pairs.draw_partner(jax.random.key(0), len(x), "reverse")
    mixed = mix(x, mask.mean(), mask, flip, "reverse")
    ref.check("mixmask/mixed_images", torch(mixed.images))
    drawn = ref["in/unmix_cutmix_lam_raw"], ref["in/unmix_cutmix_center_xy"]
    region = cut(*drawn, x.shape[1:3])[2]
    for mode, share in (("mixup", ref["in/unmix_lam"]), ("cutmix", region)):
        mixed = mix(x, mask.mean(), mask, ref["in/index_mask"], "random")
        ref.check(f"both_{mode}/mixed_images_mask", torch(mixed.images))
        mixed = mix(x, jnp.mean(share), share, flip, "reverse")
        ref.check(f"both_{mode}/mixed_images_unmix", torch(mixed.images))


MANY = 4000


def draw(sampler, *settings):
    """[MANY, n, n] masks of mixmask.block or mixmask.discrete."""
    keys = jax.random.split(jax.random.key(3), MANY)
    return np.asarray(jax.jit(jax.vmap(lambda key: sampler(key, *settings)))(keys))


def sizes(masks):
    return masks.sum(axis=(1, 2), dtype=np.float64)


def alike(ours, theirs, what):
    """Means [...] of samples [n, ...] and [m, ...] are 4.5 standard errors apart at
    most, or one of their m masks.
    """
    ours, theirs = np.float64(ours), np.float64(theirs)
    error = np.sqrt(ours.var(axis=0) * (1 / len(ours) + 1 / len(theirs)))
    gap = abs(ours.mean(axis=0) - theirs.mean(axis=0))
    assert (gap <= 4.5 * error + 1.01 / len(theirs)).all(), (what, gap.max())


def of_each(values, kinds):
    """[n, kinds] bool: which of `kinds` each of n values is."""
    return np.array([[v == kind for kind in kinds] for v in values])


def test_block_masks_by_distribution(reference):
    ref = reference("mixmask")
    assert ref["hp/min_num_patches"] == mixmask.SMALLEST
    assert ref["hp/min_aspect"] == mixmask.ASPECT
    for grid in ref["hp/grids"].tolist():
        theirs = ref[f"out/block_masks_grid{grid}"]
        count = int(ref["hp/mask_lam"] * grid**2)
        ours = draw(mixmask.block, grid, count, count)
        assert sizes(ours).max() == count
        alike(ours, theirs, f"each of {grid} x {grid} cells")
        possible = range(count + 1)
        shares = [of_each(sizes(m), possible) for m in (ours, theirs)]
        alike(*shares, f"how many of {grid} x {grid} cells")


def test_first_rectangles_by_distribution(reference):
    """Sides and place of what the first round alone leaves."""
    ref = reference("mixmask")
    for grid in ref["hp/grids"].tolist():
        count = int(ref["hp/mask_lam"] * grid**2)
        ours = [rectangle(m) for m in draw(mixmask.block, grid, count, 1)]
        rows = ref[f"out/block_rects_grid{grid}"]
        _, first = np.unique(rows[:, 0], return_index=True)
        theirs = [tuple(r) for r in rows[first, 1:5].tolist()]
        theirs += [(0, 0, 0, 0)] * (ref["hp/num_seeds"] - len(first))
        kinds = {r[2:] for r in ours + theirs}
        shapes = [of_each([r[2:] for r in all], kinds) for all in (ours, theirs)]
        alike(*shapes, f"height and width among {grid} x {grid} cells")
        alike(ours, theirs, "top, left, height, width")


def rectangle(mask):
    """(top, left, height, width) of the ones of a mask, zeros without any."""
    if not mask.any():
        return 0, 0, 0, 0
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    assert mask.sum() == len(rows) * len(columns), "the ones are one rectangle"
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_discrete_masks_by_distribution(reference):
    """Their flag is the share that is hidden."""
    ref = reference("mixmask")
    kept = 1 - ref["hp/mask_lam"]
    for grid in ref["hp/grids"].tolist():
        theirs = ref[f"out/discrete_masks_grid{grid}"]
        ours = draw(mixmask.discrete, grid, kept)
        assert 0 < sizes(ours).min() and sizes(ours).max() < grid**2
        alike(ours, theirs, f"each of {grid} x {grid} cells")
        possible = range(grid**2 + 1)
        shares = [of_each(sizes(m), possible) for m in (ours, theirs)]
        alike(*shares, f"how many of {grid} x {grid} cells")
