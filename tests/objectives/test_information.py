"""Contrast between tokens, and mutual information between views."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.errors import UsageError
from mixjax.mixtures import tokens
from mixjax.objectives import mutual_information as mi
from mixjax.objectives.token_contrast import homologous_contrast
from mixjax.state import example_keys

few = settings(max_examples=8, deadline=None)  # every size is compiled


def latents(b, n, d, seed=0):
    return jax.random.normal(jax.random.key(seed), (b, n, d))


# --- token contrast --------------------------------------------------------------


def test_equal_tokens_give_the_logarithm_of_their_number():
    source = jnp.arange(196)[None] % 4
    features = jnp.ones((1, 196, 8))
    run = lambda positives: homologous_contrast(
        features,
        source,
        0.25,
        positives=positives,
        members=4,
        keys=jax.random.split(jax.random.key(0), 1),
    )
    np.testing.assert_allclose(run("all"), np.log(195), rtol=1e-5)  # spec 5.6: 5.27
    np.testing.assert_allclose(run("one"), np.log(195), rtol=1e-5)
    np.testing.assert_allclose(run("prototype"), np.log(4), rtol=1e-5)


@pytest.mark.parametrize("positives", ["all", "one", "prototype"])
def test_contrast_falls_when_sources_part(positives):
    source = jnp.array([[0, 0, 1, 1, 2, 2]])
    mixed = latents(1, 6, 4)
    parted = 0.1 * mixed + jnp.eye(4)[source]
    run = jax.jit(
        lambda x: homologous_contrast(
            x,
            source,
            0.25,
            positives=positives,
            members=3,
            keys=jax.random.split(jax.random.key(0), 1),
        )
    )
    assert run(parted) < run(mixed)
    assert np.isfinite(jax.grad(run)(parted)).all()


def test_a_token_alone_in_its_source_counts_nothing():
    source = jnp.array([[0, 1, 1, 1]])
    value, grad = jax.value_and_grad(homologous_contrast)(
        latents(1, 4, 3), source, 0.5, positives="all", members=2
    )
    assert np.isfinite(value) and np.isfinite(grad).all()


# --- InfoNCE ---------------------------------------------------------------------


def test_info_nce_at_its_ends():
    """Spec trap 10f: orthogonal latents, and views that coincide far from others."""
    b, n = 8, 4
    apart = jnp.eye(b * n).reshape(b, n, -1)
    want = (n - 1) / n * np.log(n * b - 1)
    np.testing.assert_allclose(mi.info_nce_views(apart, 0.07), want, rtol=1e-5)
    same = jnp.repeat(jnp.eye(b)[:, None], n, axis=1)
    least = (n - 1) / n * np.log(n - 1)
    np.testing.assert_allclose(mi.info_nce_views(same, 0.01), least, rtol=1e-5)


@few
@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 5))
def test_info_nce_term_by_term(b, n, seed):
    z = np.asarray(latents(b, n, 5, seed), np.float64)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    flat, total = z.reshape(b * n, 5), 0.0
    for x in range(b):
        for i in range(n):
            logits = [flat[x * n + i] @ c / 0.2 for c in np.delete(flat, x * n + i, 0)]
            for k in set(range(n)) - {i}:
                total += np.log(np.exp(logits).sum()) - z[x, i] @ z[x, k] / 0.2
    ours = mi.info_nce_views(jnp.asarray(z, jnp.float32), 0.2)
    np.testing.assert_allclose(ours, total / n**2 / b, rtol=1e-4, atol=1e-5)


def test_local_negatives():
    z = latents(8, 2, 6)
    halves = [mi.info_nce_views(half, 0.1) for half in (z[:4], z[4:])]
    np.testing.assert_allclose(
        mi.info_nce_views(z, 0.1, parts=2), np.mean(halves), rtol=1e-5
    )


def test_parts_that_do_not_divide_the_images():
    """Parts are of images: 4 would divide the 12 views of three, but not the images."""
    for parts, near in ((4, 3), (0, 1), (2, 1)):
        with pytest.raises(UsageError, match=f"parts={parts} .* does is {near}"):
            mi.info_nce_views(latents(3, 4, 6), 0.1, parts)


# --- CLUB ------------------------------------------------------------------------


@few
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["views", "batch"]))
def test_club_is_a_difference_of_log_densities(b, n, negatives):
    z, mean = latents(b, n, 6), latents(b, n, 6, 1)
    variance = jnp.exp(latents(b, n, 6, 2))

    def log_density(z, j):
        return -mi.negative_log_likelihood(z, mean[j], variance[j], "sum")

    want = []
    for x in range(b):
        for j in range(n):
            others = z[x] if negatives == "views" else z.reshape(b * n, -1)
            want.append(
                log_density(z[x, j], (x, j))
                - np.mean([log_density(k, (x, j)) for k in others])
            )
    ours = mi.club(z, mean, variance, negatives, "sum")
    np.testing.assert_allclose(ours, np.mean(want), rtol=1e-3, atol=1e-3)


@few
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 9))
def test_equal_views_carry_nothing_more(b, n, seed):
    """Trap 9: L_min is exactly 0, not a small number."""
    z = jnp.repeat(latents(b, 1, 7, seed), n, axis=1)
    mean, variance = latents(b, n, 7, 1), jnp.exp(latents(b, n, 7, 2))
    assert (
        jax.jit(mi.club, static_argnums=(3, 4))(z, mean, variance, "views", "sum") == 0
    )


# --- gate ------------------------------------------------------------------------


def test_the_gate_latches():
    gate = mi.Gate("latch", 0.5, 0.9)
    memory, factors = mi.closed_gate(), []
    for loss in [1.0] * 5 + [0.1] * 30 + [2.0] * 30:
        factors.append(float(gate.factor(memory, loss)))
        memory = gate.after(memory, jnp.float32(loss))
    opened = factors.index(1.0)
    assert 5 < opened < 20 and set(factors[opened:]) == {1.0}


def test_a_low_first_loss_opens_at_once():
    """The average is corrected for its start at 0, and a high one keeps it shut."""
    gate = mi.Gate("latch", 0.5, 0.99)
    assert gate.after(mi.closed_gate(), jnp.float32(0.4))["open"] == 1
    assert gate.after(mi.closed_gate(), jnp.float32(0.6))["open"] == 0


def test_other_gates():
    closed = mi.closed_gate()
    assert mi.Gate("open", 0.5, 0.9).factor(closed, 9.0) == 1
    instant = mi.Gate("instant", 0.5, 0.9)
    assert instant.factor(closed, jnp.float32(0.4)) == 1
    assert instant.factor(closed | {"open": 1.0}, jnp.float32(0.6)) == 0


# --- views and cells ---------------------------------------------------------------


def keys(n):
    return example_keys(jax.random.key(0), jnp.arange(n))


def test_four_views_share_nothing_and_cover_the_image():
    masking = tokens.view_masking(keys(20), 196, 49, 4, "circular")
    np.testing.assert_array_equal(masking.kept.sum(axis=1), 1)
    assert len({row.tobytes() for row in np.asarray(masking.kept)}) == 20
    alone = tokens.view_masking(keys(20), 196, 49, 4, "independent")
    np.testing.assert_array_equal(alone.kept.sum(axis=-1), 49)
    assert alone.kept.sum(axis=1).max() > 1


@few
@given(st.integers(4, 30), st.integers(2, 6), st.data())
def test_views_keep_what_they_say(length, views, data):
    visible = data.draw(st.integers(1, length - 1))
    masking = tokens.view_masking(keys(3), length, visible, views, "circular")
    np.testing.assert_array_equal(masking.kept.sum(axis=-1), visible)
    x = jnp.broadcast_to(jnp.arange(length)[None, :, None], (3, length, 1)).astype(
        float
    )
    kept = tokens.keep_views(x, masking, visible).reshape(3, views, visible)
    for b in range(3):
        for n in range(views):
            assert (masking.kept[b, n][kept[b, n].astype(int)] == 1).all()
    # Views overlap or not, a token's gradient counts how often it was taken.
    counts = jax.grad(lambda x: tokens.keep_views(x, masking, visible).sum())(x)
    np.testing.assert_array_equal(counts[..., 0], masking.kept.sum(axis=1))


def test_views_that_cover():
    ratios = {0.1: 2, 0.5: 2, 0.6: 3, 0.75: 4, 0.8: 5, 0.9: 10}
    assert {r: tokens.views_that_cover(r) for r in ratios} == ratios


def test_cells_hide_as_many_as_simmim_and_complements_tile():
    kept = tokens.cell_masking(keys(10), (48, 48), 8, 0.6, 1)
    assert kept.shape == (10, 1, 48 * 48)
    assert ((1 - kept).sum(axis=-1) == 22 * 64).all()  # ceil(0.6 * 36) cells
    wide = tokens.cell_masking(keys(10), (14, 14), 2, 0.6, 1)
    assert ((1 - wide).sum(axis=-1) == 30 * 4).all()
    two = tokens.cell_masking(keys(10), (48, 48), 8, 0.5, 2)
    np.testing.assert_array_equal(two.sum(axis=1), 1)
    blocks = two.reshape(10, 2, 6, 8, 6, 8)
    assert (blocks == blocks[:, :, :, :1, :, :1]).all()


def test_no_scatter_in_views():
    masking = tokens.view_masking(keys(2), 16, 4, 4, "circular")
    run = jax.grad(lambda x: jnp.square(tokens.keep_views(x, masking, 4)).sum())
    text = jax.jit(run).lower(jnp.ones((2, 16, 3))).as_text()
    assert "scatter" not in text
