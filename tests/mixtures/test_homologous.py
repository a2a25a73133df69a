"""Homologous mixing and attention: properties for any size, and the spec's traps."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.errors import UsageError
from mixjax.mixtures import homologous, homologous_attention
from mixjax.state import example_keys

few = settings(max_examples=8, deadline=None)  # every size is compiled
random_sources = jax.jit(homologous.random_sources, static_argnums=(1, 2, 3, 4))


def keys(groups, seed=0):
    return example_keys(jax.random.key(seed), jnp.arange(groups))


@st.composite
def deals(draw):
    """(groups, rows and columns of cells, side of a cell in tokens, members)."""
    rows, columns = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    cell, members = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    return draw(st.integers(1, 3)), (rows, columns), cell, members


@few
@given(deals(), st.sampled_from(homologous.LEFTOVER), st.integers(0, 3))
def test_every_image_gets_its_share(deal, leftover, seed):
    """Trap 8: whole cells, counts within one cell of each other (split: one token)."""
    groups, cells, cell, members = deal
    grid = cells[0] * cell, cells[1] * cell
    source = random_sources(keys(groups, seed), grid, cell, members, leftover)
    assert source.shape == (groups, grid[0] * grid[1]) and source.dtype == jnp.int32
    per_image, spare = divmod(cells[0] * cells[1], members)
    for row in np.asarray(source):
        counts = np.bincount(row, minlength=members)
        assert len(counts) == members
        blocks = row.reshape(cells[0], cell, cells[1], cell).swapaxes(1, 2)
        blocks = blocks.reshape(-1, cell * cell)
        whole = (blocks == blocks[:, :1]).all(axis=1)
        if leftover == "random_image":
            assert whole.all()
            assert set(counts) <= {per_image * cell**2, (per_image + 1) * cell**2}
        else:
            assert counts.max() - counts.min() <= 1
            assert (~whole).sum() <= spare


def test_the_paper_s_counts():
    """49 cells of 2 x 2 tokens: 48, 48, 48, 52, or 49 each."""
    counts = {}
    for leftover in homologous.LEFTOVER:
        source = np.asarray(random_sources(keys(400), (14, 14), 2, 4, leftover))
        counts[leftover] = (source[:, :, None] == np.arange(4)).sum(axis=1)
    assert (np.sort(counts["random_image"]) == [48, 48, 48, 52]).all()
    assert (counts["split"] == 49).all()
    owners = np.bincount(counts["random_image"].argmax(axis=1), minlength=4) / 400
    np.testing.assert_allclose(owners, 0.25, atol=0.08)
    eighth = np.asarray(random_sources(keys(9), (14, 14), 2, 8, "split"))
    assert set((eighth[:, :, None] == np.arange(8)).sum(axis=1).ravel()) == {24, 25}


def test_every_group_draws_its_own():
    source = np.asarray(random_sources(keys(50), (8, 8), 2, 4, "split"))
    assert len({row.tobytes() for row in source}) == 50
    turned = random_sources(keys(50)[::-1], (8, 8), 2, 4, "split")
    np.testing.assert_array_equal(turned, source[::-1])


@pytest.mark.parametrize(
    "grid, cell, members, message",
    [
        ((14, 14), 3, 4, "cells of 3 x 3 tokens, .* tile 14 x 14 tokens; 1, 2, 7, 14 "),
        ((14, 14), 0, 4, "cells of 0 x 0"),
        ((4, 4), 2, 8, "4 cells are too few for groups of 8"),
    ],
)
def test_cells_that_do_not_fit(grid, cell, members, message):
    with pytest.raises(UsageError, match=message):
        homologous.random_sources(keys(1), grid, cell, members, "split")


def test_shares_that_are_no_group():
    assert [homologous.count_members(r) for r in (0.5, 0.25, 0.125)] == [2, 4, 8]
    for share in (0.3, 1.0, 0.0, -0.5, 2.0):
        with pytest.raises(UsageError, match=f"method.r={share} is not 1/K"):
            homologous.count_members(share)


@few
@given(deals(), st.integers(1, 3))
def test_mixing_keeps_places_and_unmixing_brings_back(deal, width):
    groups, cells, cell, members = deal
    grid = cells[0] * cell, cells[1] * cell
    length = grid[0] * grid[1]
    source = random_sources(keys(groups), grid, cell, members, "random_image")
    x = jax.random.normal(jax.random.key(1), (groups, members, length, width))
    mixed = homologous.mix(x, source)
    want = np.take_along_axis(np.asarray(x), np.asarray(source)[:, None, :, None], 1)
    np.testing.assert_array_equal(mixed, want[:, 0])
    back = homologous.unmix(mixed, source, jnp.full((1, 1, width), 7.0), members)
    shown = np.asarray(source)[:, None, :, None] == np.arange(members)[:, None, None]
    np.testing.assert_array_equal(back, np.where(shown, x, 7.0))
    # Over the rotations every token of every image is seen exactly once.
    turns = np.asarray(homologous.rotations(source, members))
    for place in range(length):
        assert sorted(turns[0, :, place]) == list(range(members))


def test_mixing_pixels_is_mixing_patches():
    source = random_sources(keys(2), (4, 6), 2, 3, "random_image")
    images = jax.random.normal(jax.random.key(0), (2, 3, 8, 12, 3))
    mixed = homologous.mix_images(images, source, 2)
    cut = lambda x: x.reshape(*x.shape[:-3], 4, 2, 6, 2, 3).swapaxes(-4, -3)
    patches = cut(images).reshape(2, 3, 24, 12)
    wanted = homologous.mix(patches, source)
    np.testing.assert_array_equal(cut(mixed).reshape(2, 24, 12), wanted)


def test_class_tokens_when_unmixing():
    source = jnp.array([[0, 1, 1, 0]])
    x = jnp.arange(5.0).reshape(1, 5, 1)  # one class token, four places
    fill = jnp.full((1, 1, 1), 9.0)
    shared = homologous.unmix_sequence(x, source, fill, 2)[..., 0]
    np.testing.assert_array_equal(shared, [[0, 1, 9, 9, 4], [0, 9, 2, 3, 9]])
    x = jnp.arange(6.0).reshape(1, 6, 1)  # one class token per image
    separate = homologous.unmix_sequence(x, source, fill, 2)[..., 0]
    np.testing.assert_array_equal(separate, [[0, 2, 9, 9, 5], [1, 9, 3, 4, 9]])


@few
@given(st.sampled_from([1, 6, 40]), st.data())
def test_kth_largest_is_exact(n, data):
    k = data.draw(st.integers(1, n))
    floats = st.floats(width=32, allow_nan=False, allow_subnormal=False)
    x = np.array(data.draw(st.lists(floats, min_size=n, max_size=n)), np.float32)
    largest = jax.jit(homologous_attention.kth_largest, static_argnums=1)(
        jnp.asarray(x), k
    )
    assert largest[0] == np.sort(x)[::-1][k - 1]


@pytest.mark.parametrize("class_key", homologous_attention.CLASS_KEYS)
def test_topk_keeps_exactly_k_patches(class_key):
    """Trap 7: per head and query, without class keys; class-token queries see all."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 17, 17))
    kept = np.asarray(homologous_attention.topk_keys(logits, 5, class_key))
    assert kept[:, :, 0].all()
    rows = kept[:, :, 1:]
    if class_key == "compete":
        assert (rows.sum(axis=-1) == 5).all()
        return
    assert (rows[..., 1:].sum(axis=-1) == 5).all()
    assert (rows[..., 0] == (class_key == "keep")).all()
    chosen = np.argsort(-np.asarray(logits)[:, :, 1:, 1:], axis=-1)[..., :5]
    assert np.take_along_axis(rows[..., 1:], chosen, axis=-1).all()


def test_all_keys_is_plain_attention():
    logits = jax.random.normal(jax.random.key(0), (1, 2, 10, 10))
    assert homologous_attention.topk_keys(logits, 9, "keep").all()
    assert homologous_attention.topk_keys(logits, 50, "compete").all()


def test_sampling_accuracy():
    """1 if keys of the same source are boosted; by chance, the share of one image."""
    source = random_sources(keys(8), (8, 8), 2, 4, "split")
    labels = jnp.pad(source, ((0, 0), (1, 0)), constant_values=-1)
    same = labels[:, None, :, None] == labels[:, None, None, :]
    logits = jax.random.normal(jax.random.key(0), (8, 4, 65, 65))
    accuracy = lambda x: homologous_attention.sampling_accuracy(
        homologous_attention.topk_keys(x, 16, "keep"), source
    )
    assert accuracy(logits + 100 * same) == 1
    assert abs(accuracy(logits) - 0.25) < 0.01
    everything = jnp.ones((8, 1, 65, 65), bool)
    assert abs(homologous_attention.sampling_accuracy(everything, source) - 0.25) < 1e-6


def test_nothing_scatters():
    """Both passes are selections: no communication, and bits that can be reproduced."""
    source = random_sources(keys(2), (4, 4), 2, 4, "random_image")

    def loss(x, fill, logits):
        mixed = homologous.mix(x, source)
        whole = homologous.unmix_sequence(
            jnp.concatenate([mixed[:, :1], mixed], axis=1), source, fill, 4
        )
        kept = homologous_attention.topk_keys(logits, 4, "keep")
        return jnp.square(whole).sum() + jnp.where(kept, logits, 0).sum()

    x, fill = jnp.ones((2, 4, 16, 3)), jnp.ones((1, 1, 3))
    logits = jax.random.normal(jax.random.key(0), (2, 1, 17, 17))
    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, fill, logits).as_text()
    assert "scatter" not in text and "sort" not in text
