"""Masking and restoring tokens: properties at any size, and the spec's traps."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from mixjax.mixtures import tokens
from mixjax.state import example_keys

few = settings(max_examples=8, deadline=None)  # every size is compiled


@st.composite
def sizes(draw):
    length = draw(st.integers(2, 30))
    return draw(st.integers(1, 5)), length, draw(st.integers(1, length - 1))


def masking(batch, length, visible, seed=0):
    keys = example_keys(jax.random.key(seed), jnp.arange(batch))
    run = jax.jit(tokens.random_masking, static_argnums=(1, 2))
    return run(keys, length, visible)


@few
@given(sizes(), st.integers(0, 5))
def test_masking_is_a_permutation_that_keeps_just_enough(size, seed):
    batch, length, visible = size
    m = masking(batch, length, visible, seed)
    for b in range(batch):
        assert sorted(m.shuffle[b].tolist()) == list(range(length))
        np.testing.assert_array_equal(m.restore[b][m.shuffle[b]], np.arange(length))
        kept = set(m.shuffle[b, :visible].tolist())
        assert {i for i in range(length) if m.kept[b, i] == 1} == kept
    assert m.kept.sum() == batch * visible


def test_every_image_has_its_own_mask_and_every_patch_its_turn():
    kept = np.asarray(masking(2000, 8, 2).kept)
    assert len({tuple(row) for row in kept}) == 28  # all pairs of 8
    np.testing.assert_allclose(kept.mean(axis=0), 0.25, atol=0.04)


def test_a_mask_belongs_to_the_example_not_to_its_place():
    key, index = jax.random.key(0), jnp.array([7, 3, 9])
    drawn = tokens.random_masking(example_keys(key, index), 16, 4)
    turned = tokens.random_masking(example_keys(key, index[::-1]), 16, 4)
    np.testing.assert_array_equal(drawn.kept, turned.kept[::-1])


@few
@given(sizes())
def test_unshuffle_puts_patches_back_and_mask_tokens_elsewhere(size):
    """Trap 2: with patch i holding the number i + 1 and mask token 77."""
    batch, length, visible = size
    m = masking(batch, length, visible)
    x = jnp.broadcast_to(jnp.arange(1.0, length + 1)[None, :, None], (batch, length, 3))
    kept = tokens.keep(x, m, visible)
    assert kept.shape == (batch, visible, 3)
    cls = jnp.full((batch, 1, 3), -5.0)
    token = jnp.full((1, 1, 3), 77.0)
    full = tokens.unshuffle(jnp.concatenate([cls, kept], axis=1), token, m)
    np.testing.assert_array_equal(full[:, 0], -5)
    want = jnp.where(m.kept[:, :, None] == 1, x, 77.0)
    np.testing.assert_array_equal(full[:, 1:], want)


@few
@given(sizes())
def test_take_has_the_gradient_of_a_plain_gather(size):
    batch, length, visible = size
    m = masking(batch, length, visible)
    x = jax.random.normal(jax.random.key(1), (batch, length, 3))
    g = jax.random.normal(jax.random.key(2), (batch, visible, 3))
    ids = m.shuffle[:, :visible]
    ours = jax.grad(lambda x: (tokens.take(x, ids, m.restore) * g).sum())(x)
    plain = jax.grad(lambda x: (tokens.gather(x, ids) * g).sum())(x)
    np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_no_scatter_is_left_in_the_gradient():
    m = masking(2, 16, 4)
    x, token = jnp.ones((2, 16, 3)), jnp.ones((1, 1, 3))

    def loss(x, token):
        kept = tokens.keep(x, m, 4)
        kept = jnp.concatenate([kept[:, :1], kept], axis=1)
        return jnp.square(tokens.unshuffle(kept, token, m)).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, token).as_text()
    assert "scatter" not in text
