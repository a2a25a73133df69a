"""ResizeMix: the box shows the whole partner, lam is the exact share, bad fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixjax.errors import UsageError
from mixjax.mixtures import pairs, resizemix
from tests.support import tiny

FIELDS = resizemix.PAPER | dict(permutation="reverse", shared=False, groups=2)


def mix(images, seed=0, **changes):
    mixture = resizemix.make(**(FIELDS | changes))
    (mixed,) = jax.jit(mixture)(jax.random.key(seed), images)
    return mixed


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(8, 8), (16, 12)]),
    st.sampled_from(["reverse", "random"]),
)
def test_the_mean_of_constant_images_is_that_of_lam(seed, size, permutation):
    """Images of one value each: their own outside of the box, the partner's inside."""
    values = jnp.arange(1.0, 9.0)
    images = jnp.broadcast_to(values[:, None, None, None], (8, *size, 3))
    mixed = mix(images, seed, permutation=permutation)
    partner = pairs.take(values.reshape(2, 4), mixed.partner).reshape(-1)
    expected = mixed.lam * values + (1 - mixed.lam) * partner
    np.testing.assert_allclose(mixed.images.mean(axis=(1, 2, 3)), expected, rtol=1e-4)
    share = jnp.repeat(mixed.mask.mean(axis=(1, 2, 3)), 4)
    np.testing.assert_allclose(mixed.lam, share, rtol=1e-6)
    assert (mixed.lam >= 1 - 0.85**2).all() and (mixed.lam < 1).all()


def test_the_box_shows_the_whole_partner():
    """As Pillow shrinks it, away from the rim of the box."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 255, (2, 4, 4)).astype(np.float32)
    images = np.stack([np.asarray(Image.fromarray(x).resize((32, 32))) for x in small])
    edges = tuple(jnp.int32(x) for x in (3, 19, 8, 24))
    pasted = resizemix.paste(jnp.asarray(images)[..., None], edges)[..., 0]
    for image, result in zip(images, pasted, strict=True):
        expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(result[3:19, 8:24], np.asarray(expected), atol=0.5)
    assert not pasted[:, :2].any() and not pasted[:, :, 26:].any()


def test_groups_have_draws_of_their_own_unless_shared():
    images = jnp.zeros((8, 16, 16, 3))
    masks = mix(images).mask
    assert (masks[0] != masks[1]).any()
    masks = mix(images, shared=True).mask
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("smallest, largest", [(0.0, 0.5), (0.5, 0.2), (0.1, 1.5)])
def test_a_range_that_is_none_is_refused(smallest, largest):
    with pytest.raises(UsageError, match=rf"mixture\.smallest={smallest} and"):
        resizemix.make(**(FIELDS | dict(smallest=smallest, largest=largest)))


# --- in training ---------------------------------------------------------------------


def test_it_trains_siamese_and_supervised(tmp_path):
    """The same file serves pre-training and fine-tuning, chosen by its name alone."""
    variant = ",mixture.smallest=.1,mixture.largest=.8"
    moco = tiny.siamese("moco", "resizemix", variant[1:], steps=4)
    folder = tiny.run(tmp_path / "moco", moco)
    losses = tiny.metrics(folder, "train/loss_resizemix")
    assert losses and np.isfinite(list(losses.values())).all()
    finetuned = tiny.supervised("finetune", f"mixture=resizemix{variant}", steps=4)
    folder = tiny.run(tmp_path / "finetune", finetuned)
    shares = tiny.metrics(folder, "train/lam")
    assert shares and all(0 < lam < 1 for lam in shares.values())
