"""Siamese objectives: gradients, queues, codes, whitening, what devices send."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax import objectives
from mixjax.errors import UsageError
from mixjax.objectives import moco, simclr, swav, wmse
from mixjax.objectives.contrast import among, unit
from mixjax.sharding import meshes
from mixjax.state import Clock
from tests.sharding.test_meshes import sent as collectives

few = settings(max_examples=5, deadline=None)  # every size is compiled
CLOCK = Clock(total_steps=100, steps_per_epoch=2)
RNG = jax.random.key(7)
SWAV = dict(name="swav", temperature=0.1, epsilon=0.05, iterations=3)
SWAV |= dict(queue=0, queue_start_epochs=0)
CONFIGS = {
    "moco": dict(name="moco", queue=32, temperature=0.2),
    "moco_v3": dict(name="moco", queue=0, temperature=0.2),
    "simclr": dict(name="simclr", temperature=0.5, candidates="both"),
    "simclr_targets": dict(name="simclr", temperature=0.5, candidates="targets"),
    "byol": dict(name="cosine", loss="distance"),
    "simsiam": dict(name="cosine", loss="negative"),
    "swav": SWAV,
    "swav_queue": SWAV | dict(queue=16),
    "wmse": dict(name="wmse", size=8, iterations=2, eps=0.0, loss="distance"),
    "wmse_mse": dict(name="wmse", size=8, iterations=2, eps=0.1, loss="mse"),
}
every_objective = pytest.mark.parametrize("name", CONFIGS)


def make(name, **changes):
    return objectives.make(CONFIGS[name] | changes, clock=CLOCK)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def directions(seed, *shape):
    x = normal(seed, *shape)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def outputs(seed, b=8, d=4, k=6):
    """What a network with every head gives, of one branch."""
    embedding, prototypes = directions(seed + 100, b, d), directions(0, k, d).T
    found = {
        "projection": normal(seed, b, d),
        "prediction": normal(seed + 200, b, d),
        "embedding": embedding,
        "prototypes": prototypes,
        "scores": embedding @ prototypes,
    }
    return jax.tree.map(jnp.asarray, found)


def born(objective, d=4):
    """The memory before the first step, from shapes of a batch of one."""
    return objective.init(RNG, jax.eval_shape(lambda: outputs(0, 1, d)))


def full(objective, views=(3, 4), b=8, times=4):
    """The memory after enough steps to fill every queue."""
    memory = born(objective)
    for step in range(times):
        memory = objective.remember(memory, [outputs(v + 10 * step, b) for v in views])
    return memory


def losses(objective, a, b, memory, view=1):
    """[B]: predict branch b from branch a."""
    target = objective.target(b, memory, RNG, view)
    return objective.compare(objective.predict(a, memory, RNG), target, memory)


# --- what all have in common ------------------------------------------------------


@every_objective
def test_one_loss_for_each_example(name):
    objective = make(name)
    found = jax.jit(lambda *x: losses(objective, *x))(
        outputs(1), outputs(2), full(objective)
    )
    assert found.shape == (8,) and found.dtype == jnp.float32
    assert np.isfinite(found).all() and np.std(found) > 0


def slope(function, x, along, step=1e-2):
    """By the gradient and by finite differences, the slope of `function` at x."""
    grads = jax.tree.map(lambda g, v: (g * v).sum(), jax.grad(function)(x), along)
    ahead, behind = (
        function(jax.tree.map(lambda x, v, by=by: x + by * v, x, along))
        for by in (step, -step)
    )
    return sum(jax.tree.leaves(grads)), (ahead - behind) / (2 * step)


@every_objective
def test_gradients(name):
    """The second argument has one in SimCLR and W-MSE alone."""
    objective, heads = make(name), ("projection", "prediction", "scores")
    memory, rest = full(objective), outputs(1)
    a, b, along = ({k: outputs(i)[k] for k in heads} for i in (1, 2, 3))

    def loss(a, b):
        return losses(objective, rest | a, rest | b, memory).mean()

    @jax.jit
    def slopes(a, b):
        first = slope(lambda x: loss(x, b), a, along)
        return first, slope(lambda x: loss(a, x), b, along)

    both = name.startswith(("simclr", "wmse"))
    for (found, want), there in zip(slopes(a, b), (True, both), strict=True):
        if there:
            np.testing.assert_allclose(found, want, rtol=2e-2, atol=1e-3)
        assert (abs(found) > 1e-2) == there
        assert there or found == 0


def test_codes_do_not_move_prototypes():
    """Not through the scores of the batch, and not through those of the queue."""
    objective = make("swav_queue")
    memory, a, b = full(objective), outputs(1), outputs(2)

    def loss(b):
        return losses(objective, a, b, memory).mean()

    assert memory["queue"].any()
    for name, grad in jax.jit(jax.grad(loss))(b).items():
        assert not grad.any(), name


@every_objective
def test_nothing_moves_the_queue(name):
    """A gradient into memory would be one into keys of earlier steps."""
    objective = make(name)
    floats = {k: v for k, v in full(objective).items() if v.dtype == jnp.float32}

    def written(x):
        memory = objective.remember(full(objective), [x, x])
        return sum(memory[k].sum() for k in floats)

    if floats:
        grads = jax.tree.leaves(jax.grad(written)(outputs(1)))
        assert not any(g.any() for g in grads)


@pytest.mark.parametrize("name", ["moco", "simclr", "byol"])
def test_an_embedding_of_zeros_has_a_finite_gradient(name):
    objective = make(name)
    a = {k: v.at[0].set(0.0) for k, v in outputs(1).items()}
    memory = full(objective)
    loss = lambda a: losses(objective, a, outputs(2), memory).mean()
    assert all(np.isfinite(g).all() for g in jax.grad(loss)(a).values())


def test_short_embeddings_keep_their_direction():
    np.testing.assert_allclose(unit(jnp.array([3e-10, 4e-10])), [0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            dict(name="pixels"),
            r"objective\.name 'pixels' does not exist; known: .*cosine",
        ),
        (dict(name="byol"), r"'byol' does not exist"),
        (dict(name="moco", queue=8), r"objective\.temperature is missing"),
        (CONFIGS["moco"] | dict(queue=-1), r"objective\.queue=-1 must be at least 0"),
        (
            CONFIGS["simclr"] | dict(candidates="all"),
            r"candidates 'all' does not exist",
        ),
        (CONFIGS["byol"] | dict(loss="distances"), r"loss 'distances' .*'distance'"),
        (SWAV | dict(queue=-3), r"objective\.queue=-3 must be at least 0"),
        (SWAV | dict(iterations=0), r"objective\.iterations=0 must be at least 1"),
        (CONFIGS["wmse"] | dict(iterations=0), r"objective\.iterations=0 must be at"),
        (CONFIGS["wmse"] | dict(eps=1.0), r"objective\.eps=1\.0 must be .* below 1"),
        (CONFIGS["wmse"] | dict(loss="l2"), r"objective\.loss 'l2' does not exist"),
    ],
)
def test_a_wrong_field_is_named(config, message):
    with pytest.raises(UsageError, match=message):
        objectives.make(config, clock=CLOCK)


# --- MoCo -------------------------------------------------------------------------


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 7))
def test_queue_holds_the_last_clean_keys_in_order(batch, turns, views, steps):
    """Against a list: first the keys of view 1, then those of view 2, and so on."""
    n = batch * views
    objective = make("moco", queue=n * turns)
    memory = born(objective)
    np.testing.assert_allclose(np.linalg.norm(memory["queue"], axis=1), 1, rtol=1e-5)
    rows = list(np.asarray(memory["queue"]))
    for step in range(steps):
        given_ = [outputs(step * views + v, batch) for v in range(views)]
        memory = objective.remember(memory, given_)
        keys = [np.asarray(unit(x["projection"])) for x in given_]
        place = step * n % (n * turns)
        rows[place : place + n] = np.concatenate(keys)
    np.testing.assert_array_equal(memory["queue"], np.stack(rows))
    assert memory["pointer"] == steps * n % (n * turns)


def test_negatives_are_those_before_the_keys_are_written():
    objective = make("moco", queue=8)
    memory, a, b = full(objective, views=(3,)), outputs(1), outputs(2)
    q, k = unit(a["prediction"]), unit(b["projection"])
    rows = np.concatenate([(q * k).sum(1)[:, None], q @ memory["queue"].T], 1) / 0.2
    want = np.log(np.exp(rows).sum(1)) - rows[:, 0]
    np.testing.assert_allclose(losses(objective, a, b, memory), want, rtol=1e-5)
    after = objective.remember(memory, [b])
    assert np.abs(losses(objective, a, b, after) - want).min() > 1e-3


@pytest.mark.parametrize("views, fits", [(1, "take 96 or 108"), (3, "take 72 or 108")])
def test_the_queue_is_a_multiple_of_what_is_written(views, fits):
    objective = make("moco", queue=100)
    memory = born(objective)
    message = rf"objective\.queue=100 .* {12 * views} keys .*; {fits}\."
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(
            objective.remember, memory, [outputs(v, 12) for v in range(views)]
        )


@pytest.mark.parametrize(
    "length, temperature, least",
    [(4096, 0.1, 0.171), (65536, 0.07, 0.04), (65536, 0.2, 6.093)],
)
def test_floor_of_moco(length, temperature, least):
    """Negatives at right angles."""
    query, other = jnp.eye(4)[:1], jnp.eye(4)[1:2]
    queue = jnp.broadcast_to(other, (length, 4))
    found = moco.info_nce(query, query, queue, temperature)
    np.testing.assert_allclose(found, least, atol=5e-4)


def test_moco_reads_the_predictor_where_there_is_one():
    objective, a = make("moco_v3"), outputs(1)
    np.testing.assert_array_equal(objective.predict(a, {}, RNG), unit(a["prediction"]))
    bare = {"projection": a["projection"]}
    np.testing.assert_array_equal(
        objective.predict(bare, {}, RNG), unit(a["projection"])
    )


# --- SimCLR, BYOL, SimSiam --------------------------------------------------------


@few
@given(st.integers(1, 6), st.booleans())
def test_nt_xent_term_by_term(n, both):
    a, b = directions(0, n, 3), directions(1, n, 3)
    function = simclr.nt_xent if both else among
    found = jax.jit(lambda a, b: function(a, b, 0.5))(a, b)
    for i in range(n):
        rest = [a[i] @ b[j] for j in range(n)]
        rest += [a[i] @ a[j] for j in range(n) if j != i] if both else []
        want = np.log(np.exp(np.array(rest) / 0.5).sum()) - a[i] @ b[i] / 0.5
        np.testing.assert_allclose(found[i], want, rtol=1e-4, atol=1e-5)


def test_floor_of_simclr():
    apart = {"projection": jnp.eye(512)}
    found = losses(make("simclr"), apart, apart, {})
    np.testing.assert_allclose(found, np.log(1 + 1022 * np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize("name, ends", [("byol", (0, 4)), ("simsiam", (-1, 1))])
def test_ends_of_cosine_losses(name, ends):
    a = {"prediction": normal(0, 8, 4), "projection": normal(0, 8, 4)}
    back = {"prediction": -5 * a["prediction"], "projection": a["projection"]}
    for x, want in zip((a, back), ends, strict=True):
        np.testing.assert_allclose(losses(make(name), x, a, {}), want, atol=1e-5)


# --- SwAV -------------------------------------------------------------------------


@few
@given(st.integers(1, 9), st.integers(2, 7), st.integers(1, 4), st.integers(0, 5))
def test_codes_are_those_of_the_plain_scaling(b, k, iterations, past):
    """Exponentials in turns divided by sums of rows and of columns, in float64."""
    s = np.asarray(normal(0, past + b, k), np.float64).clip(-1, 1)
    q = np.exp(s / 0.05).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * (past + b)
    want = (q * (past + b)).T[past:]
    blocks = [(jnp.float32(s[past:]), True), (jnp.float32(s[:past]), True)]
    blocks = blocks if past else blocks[:1]
    found = jax.jit(lambda: swav.codes(blocks, 0.05, iterations))()
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_codes_are_balanced_and_do_not_overflow():
    scores = jnp.where(jnp.arange(6) == 0, 1.0, normal(0, 24, 6).clip(-1, 0.9))
    assert (scores.argmax(axis=1) == 0).all()
    found = swav.codes([(scores, True)], 0.05, 50)
    np.testing.assert_allclose(found.sum(axis=0), 24 / 6, rtol=0.02)
    assert np.isfinite(swav.codes([(scores, True)], 0.001, 3)).all()


def test_the_queue_of_swav():
    """Fills from its epoch on, newest in front; counts once its last row is there."""
    objective = make("swav_queue", queue=19, queue_start_epochs=1.5)  # 3 steps
    memory = born(objective)
    alone, x = make("swav").target(outputs(50), {}, RNG, 0), outputs(50)
    remember = jax.jit(objective.remember)
    for step in range(7):
        used = step >= 3 + 2  # 16 of 19 rows are whole batches: two steps fill them
        code = objective.target(x, memory, RNG, 0)
        assert np.allclose(code, alone, atol=1e-6) != used, step
        memory = remember(memory, [outputs(2 * step), outputs(2 * step + 1)])
        assert memory["queue"].any() == (step >= 3)
    for view in range(2):
        want = [outputs(2 * step + view)["embedding"] for step in (6, 5)]
        np.testing.assert_array_equal(memory["queue"][view, :16], np.concatenate(want))


def test_each_view_has_its_queue():
    objective = make("swav_queue")
    memory, x = full(objective), outputs(50)
    codes = [objective.target(x, memory, RNG, view) for view in range(2)]
    for view, code in enumerate(codes):
        past = memory["queue"][view] @ x["prototypes"]
        want = swav.codes([(x["scores"], True), (past, True)], 0.05, 3)
        np.testing.assert_allclose(code, want, atol=1e-5)
    assert np.abs(codes[0] - codes[1]).max() > 1e-3


def test_a_queue_shorter_than_the_batch_is_none():
    """120 rows at a batch of 128, as in the recipe for CIFAR."""
    objective, x = make("swav_queue", queue=120), outputs(1, 128)
    memory = full(objective, b=128, times=1)
    assert not memory["queue"].any()
    found = objective.target(x, memory, RNG, 0)
    np.testing.assert_array_equal(found, make("swav").target(x, {}, RNG, 0))


# --- W-MSE ------------------------------------------------------------------------


@few
@given(st.integers(1, 3), st.integers(2, 5), st.sampled_from([0.0, 0.1]))
def test_whitening_by_the_inverse_cholesky_factor(parts, d, eps):
    x = np.asarray(normal(d, parts, 3 * d, d) + 3.0, np.float64)
    found = np.asarray(jax.jit(lambda x: wmse.whiten(x, eps))(jnp.float32(x)))
    for part, y in zip(x, found, strict=True):
        covariance = (1 - eps) * np.cov(part.T) + eps * np.eye(d)
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
        want = (part - part.mean(0)) @ inverse.T
        np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-4)


def test_whitened_covariance_is_the_identity():
    """Of embeddings whose directions differ by 1000 in length, too."""
    skew = normal(0, 8, 8) * jnp.logspace(0, 3, 8)
    y = wmse.whiten((normal(1, 2, 32, 8) @ skew), 0.0)
    for part in np.asarray(y, np.float64):
        np.testing.assert_allclose(np.cov(part.T), np.eye(8), atol=1e-4)


def test_order_inside_sub_batches_and_among_them_does_not_matter():
    a, b = outputs(1, 24), outputs(2, 24)
    order = np.random.default_rng(0).permutation(24)
    inside = np.concatenate([part[::-1] for part in order.reshape(3, 8)])
    among_them = np.roll(order, 8)

    def loss(order):
        orders = lambda rng, batch: jnp.asarray(order)[None]
        objective = wmse.build(orders, size=8, eps=0.0, loss="distance")
        return losses(objective, a, b, {})

    want = loss(order)
    assert (want >= 0).all() and (want <= 4).all()
    for other in (inside, among_them):
        np.testing.assert_allclose(loss(other), want, rtol=1e-3, atol=1e-4)
    assert np.abs(loss(np.arange(24)) - want).max() > 0.01


def test_both_sides_share_their_sub_batches():
    """And a batch is drawn anew for every key and repetition."""
    objective, x = make("wmse", iterations=3), outputs(1, 32)
    np.testing.assert_allclose(losses(objective, x, x, {}), 0, atol=1e-5)
    one = objective.predict(x, {}, RNG)
    assert one.shape == (3, 32, 4)
    other = objective.predict(x, {}, jax.random.key(8))
    for y in (one[1], one[2], other[0]):
        assert np.abs(y - one[0]).max() > 0.01


@pytest.mark.parametrize(
    "size, batch, hint",
    [(6, 32, "8 or 16 or 32"), (4, 32, "8 or 16"), (8, 4, "larger")],
)
def test_sub_batches_that_do_not_fit(size, batch, hint):
    message = (
        rf"objective\.size={size} .* batch of {batch} .* 4 dimensions .*take .*{hint}"
    )
    with pytest.raises(UsageError, match=message):
        losses(make("wmse", size=size), outputs(1, batch), outputs(2, batch), {})


# --- devices ----------------------------------------------------------------------

B, D = 88, 5  # no other axis is a multiple of 11
LARGE = {"moco": 2 * B, "swav_queue": B}
SENT = {  # between devices by the loss and its gradient, beside single numbers
    "moco": set(),
    "moco_v3": {(D, B)},
    "simclr": {(D, B)},
    "simclr_targets": {(D, B)},
    "byol": set(),
    "simsiam": set(),
    "swav": {(6,)},
    "swav_queue": {(6,)},
    "wmse": {(D, B), (2, D, B), (2, B)},
}


@pytest.mark.parametrize("name", SENT)
def test_what_devices_send(name):
    """Embeddings, sums over the batch, orders; never similarities. Same numbers."""
    changes = {"size": 11} if name == "wmse" else {}
    changes |= {"queue": LARGE[name]} if name in LARGE else {}
    objective, a, b = make(name, **changes), outputs(1, B, D), outputs(2, B, D)
    memory = born(objective, D)

    def loss(a, b, memory):
        mean = lambda a, b: losses(objective, a, b, memory).mean()
        return jax.value_and_grad(mean, argnums=(0, 1))(a, b)

    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    branch = {k: everywhere if k == "prototypes" else cut for k in a}
    given_ = branch, branch, everywhere
    spread = jax.jit(loss, in_shardings=given_, out_shardings=(everywhere, given_[:2]))
    program = spread.lower(a, b, memory).compile()
    text = program.as_text()
    sent = {s for _, shapes in collectives(text) for s in shapes if s}
    assert sent <= SENT[name], sent
    assert "scatter" not in text
    placed = jax.device_put((a, b), (branch, branch))
    found = program(*placed, jax.device_put(memory, everywhere))
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, found, jax.jit(loss)(a, b, memory))
