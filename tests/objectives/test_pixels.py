"""Patches as targets: order, normalisation, and where the loss looks."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.objectives import pixels


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
def test_unpatchify_inverts_patchify(rows, columns, patch, channels):
    shape = (2, rows * patch, columns * patch, channels)
    images = jax.random.normal(jax.random.key(0), shape)
    patches = pixels.patchify(images, patch)
    assert patches.shape == (2, rows * columns, patch * patch * channels)
    back = pixels.unpatchify(patches, (rows, columns), patch)
    np.testing.assert_array_equal(back, images)


def test_order_inside_and_between_patches():
    """Tokens go row by row; inside one it is (row, column, channel)."""
    h, w, c = np.meshgrid(np.arange(4), np.arange(6), np.arange(2), indexing="ij")
    images = jnp.asarray(100 * h + 10 * w + c, jnp.float32)[None]
    patches = pixels.patchify(images, 2)
    np.testing.assert_array_equal(patches[0, 1], [20, 21, 30, 31, 120, 121, 130, 131])
    assert patches[0, 3, 0] == 200


def test_zero_prediction_on_noise():
    """Trap 1: the unbiased variance gives (P - 1) / P, the biased one 1."""
    images = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    target = pixels.normalise(pixels.patchify(images, 16))
    value = pixels.masked_mse(jnp.zeros_like(target), target, jnp.zeros((4, 16)))
    assert abs(value - 767 / 768) < 1e-5


def test_constant_patches_become_zero():
    images = jnp.broadcast_to(jnp.array([0.5, -2.0, 5.0]), (1, 8, 8, 3))
    patches = pixels.patchify(images[..., :1].repeat(3, -1), 4)
    np.testing.assert_array_equal(pixels.normalise(patches), 0)
    # The three channels are one set of numbers: unequal constants are texture.
    assert abs(pixels.normalise(pixels.patchify(images, 4))).max() > 1


def test_loss_sees_hidden_patches_only():
    """Trap 3: exactly no gradient on what is kept."""
    target = jax.random.normal(jax.random.key(0), (3, 8, 5))
    prediction = jax.random.normal(jax.random.key(1), (3, 8, 5))
    kept = jnp.asarray(
        np.random.default_rng(0).permuted(np.tile([1.0] * 3 + [0] * 5, (3, 1)), axis=1)
    )
    grad = jax.jit(jax.grad(pixels.masked_mse))(prediction, target, kept)
    np.testing.assert_array_equal(grad[kept == 1], 0)
    assert (np.abs(grad[kept == 0]) > 0).all()
    value = pixels.masked_mse(prediction, target, kept)
    by_hand = np.square(prediction - target)[kept == 0].mean()
    assert value == pytest.approx(by_hand, rel=1e-6)
