"""Which parameters an optimizer treats how, and the order of its operations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.errors import UsageError
from mixjax.optim import optimizers
from mixjax.optim.schedules import Rate
from mixjax.state import Clock

PART = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
PART |= {"remat": "none", "scan": False}
ENCODER = {"name": "vit", "image_size": (8, 8), "channels": 1, "patch": 4}
ENCODER |= {"position": "learned", "pool": "class", "drop_path": 0.0}
CLOCK = Clock(100, 2)
ADAMW = {"name": "adamw", "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.05}
RULES = {"lr_rules": (), "freeze_rules": (), "unit_rules": ()}
RULES |= {"layer_decay": 1.0, "layers": ()}
ADAMW |= {"decay_vectors": False, "decay_exempt": (), **RULES}
ADAMW |= {"clip_norm": 0.0}
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "nesterov": False}
SGD |= {"decay_vectors": True, "decay_exempt": (), **RULES}
SGD |= {"clip_norm": 0.0}


@pytest.fixture(scope="module")
def shapes():
    """The parameters of a tiny ViT with learned positions and a decoder."""
    config = {"precision": "float32", "encoder": PART | ENCODER, "decoder": PART}
    init = models.make(config).init
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    return jax.eval_shape(init, jax.random.key(0), images)[0]


def named(tree):
    """{path: leaf} of a tree of dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): leaf for path, leaf in leaves}


TOKENS = {"encoder/cls_token", "encoder/pos_embed", "decoder/mask_token"}


def test_biases_and_norms_are_not_decayed(shapes):
    mask = named(optimizers.decay_mask(shapes, False, ()))
    decayed = {name for name, decays in mask.items() if decays}
    kernels = {name for name in mask if name.endswith("/kernel")}
    assert decayed == kernels | TOKENS
    # Per block: qkv, proj, fc1, fc2; beside them patch embedding, embed and pred.
    assert len(kernels) == 4 * 4 + 3
    assert {n.split("/")[-1] for n in mask.keys() - decayed} == {"bias", "scale"}


def test_exempt_paths_are_not_decayed(shapes):
    mask = named(optimizers.decay_mask(shapes, False, ("cls_token", "pos_embed$")))
    assert {n for n in TOKENS if mask[n]} == {"decoder/mask_token"}
    assert mask["encoder/patch_embed/proj/kernel"]


def test_vectors_are_decayed_where_asked(shapes):
    mask = named(optimizers.decay_mask(shapes, True, ("^decoder/",)))
    assert all(decays == name.startswith("encoder/") for name, decays in mask.items())


def test_layers_of_our_network(shapes):
    """Depth 2: layers 0 to 3, so decay 1/2 leaves 1/8, 1/4, 1/2 and 1."""
    scales = named(optimizers.layer_scales(shapes, 0.5, 2))
    for name, scale in scales.items():
        first = name in TOKENS or "patch_embed" in name
        want = 1 / 8 if first else 1 / 4 if "blocks_0" in name else 1 / 2
        on_top = name.startswith("decoder/") or "encoder/norm/" in name
        assert scale == (1 if on_top else want), name


def leaves_named(*names):
    """A tree with one number at each path."""
    tree = {}
    for name in names:
        *folders, leaf = name.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = jnp.zeros(())
    return tree


def test_layers_that_the_network_does_not_have_are_refused():
    """Block 23 under 12 layers would learn 23.7 times as fast as the classifier."""
    blocks = [f"encoder/blocks_{i}/kernel" for i in range(24)]
    tree = leaves_named(*blocks, "classifier/kernel")
    for wrong in ((12,), (25,), (12, 12)):
        message = rf"optim\.layers=\({wrong[0]},.* does not fit .* blocks are \(24,\)"
        with pytest.raises(UsageError, match=message):
            optimizers.layer_scales(tree, 0.75, wrong)
    scales = optimizers.layer_scales(tree, 0.75, (24,))
    assert max(jax.tree.leaves(scales)) == 1


def test_stages_that_the_network_does_not_have_are_refused():
    names = [f"encoder/stage_{s}/blocks_{i}/k" for s in (0, 1) for i in range(2 + s)]
    tree = leaves_named(*names, "encoder/stage_1/merge/k", "encoder/norm/k")
    assert optimizers.layer_scales(tree, 0.5, (2, 3))["encoder"]["norm"]["k"] == 1
    for wrong in ((2, 2), (5,), (3, 2), (2, 3, 1)):
        with pytest.raises(UsageError, match=r"blocks are \(2, 3\)"):
            optimizers.layer_scales(tree, 0.5, wrong)


def test_a_network_whose_blocks_have_other_names_is_refused():
    """It would get no decay at all."""
    tree = leaves_named("encoder/layer_0/kernel", "encoder/layer_1/kernel")
    with pytest.raises(UsageError, match=r"optim\.layers=\(2,\) .*encoder/blocks_I"):
        optimizers.layer_scales(tree, 0.75, (2,))


def test_layer_decay_multiplies_the_rules(shapes, said):
    """Also what is printed: every parameter in one group, slowest first."""
    config = SGD | {"layer_decay": 0.5, "layers": (2,), "weight_decay": 0.0}
    config |= {"lr_rules": (("^decoder/", 0.0), ("/norm/", 3.0))}
    params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
    tx = optimizers.make(config, lambda step: 0.5, params, clock=CLOCK)
    steps, _ = tx.update(params, tx.init(params), params)
    for name, moved in named(steps).items():
        first = name in TOKENS or "patch_embed" in name
        want = 1 / 8 if first else 1 / 4 if "blocks_0" in name else 1 / 2
        want = 3 if "/norm/" in name else want
        want = 0 if name.startswith("decoder/") else want
        np.testing.assert_array_equal(moved, -0.5 * want, err_msg=name)
    rates = [line.split()[0] for line in said[1:]]
    assert rates == ["0", "0.125", "0.25", "0.5", "3"]
    sizes = [int(line.split()[3].replace(",", "")) for line in said[1:]]
    assert sum(sizes) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer_decay": 0.5}, "layer_decay=0.5 needs optim.layers"),
        ({"layer_decay": 1.5, "layers": (2,)}, "layer_decay=1.5 must lie in 0 .. 1"),
    ],
)
def test_layer_decay_that_makes_no_sense(shapes, changes, message):
    with pytest.raises(UsageError, match=message):
        optimizers.make(SGD | changes, lambda step: 0.5, shapes, clock=CLOCK)


def run(config, params, grads, rates):
    """The parameters after a step for every rate, always with the same gradients."""
    tx = optimizers.make(
        config, lambda step: jnp.asarray(rates)[step], params, clock=CLOCK
    )

    def one(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    first = (params, tx.init(params))
    scan = jax.jit(lambda first: jax.lax.scan(one, first, length=len(rates))[0][0])
    return scan(first)


@pytest.fixture(scope="module")
def small():
    """Parameters of two parts, and gradients."""
    numbers = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    (a, b), (ga, gb) = jnp.asarray(numbers)
    params = {"encoder": {"kernel": a}, "prototypes": {"kernel": b, "bias": b[0]}}
    grads = {"encoder": {"kernel": ga}, "prototypes": {"kernel": gb, "bias": gb[0]}}
    return params, grads


def test_nesterov_looks_ahead(small):
    """v = 0.9 v + g; p -= lr (g + 0.9 v), by hand, as torch's."""
    params, grads = small
    config = SGD | {"nesterov": True, "weight_decay": 0.0}
    after = run(config, params, grads, [0.1, 0.2])
    p, v = params["encoder"]["kernel"], 0
    for lr in (0.1, 0.2):
        g = grads["encoder"]["kernel"]
        v = 0.9 * v + g
        p = p - lr * (g + 0.9 * v)
    np.testing.assert_allclose(after["encoder"]["kernel"], p, rtol=1e-6)


@pytest.mark.parametrize("config", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_a_rate_of_zero_freezes_bit_for_bit(small, config):
    params, grads = jax.tree.map(jnp.copy, small)
    frozen = params["prototypes"]
    frozen["bias"] = jnp.array([-0.0, 0.0, 1e-40, 3.0], jnp.float32)
    grads["prototypes"]["bias"] = jnp.array([1.0, -1.0, jnp.inf, jnp.nan])
    config = config | {"lr_rules": (("^prototypes/", 0.0),)}
    after = run(config, params, grads, [0.1, 0.2, 0.3])
    bits = lambda x: np.asarray(x).view(np.int32)
    for key in frozen:
        np.testing.assert_array_equal(bits(after["prototypes"][key]), bits(frozen[key]))
    moved = after["encoder"]["kernel"] != params["encoder"]["kernel"]
    assert moved.all()


def test_the_first_rule_that_matches_counts(small):
    params, grads = small
    rates = [0.1, 0.2]
    rules = (("kernel", 0.5), ("prototypes/", 3.0))
    found = run(ADAMW | {"lr_rules": rules}, params, grads, rates)
    half = run(ADAMW, params, grads, [r * 0.5 for r in rates])
    triple = run(ADAMW, params, grads, [r * 3 for r in rates])
    want = {"encoder": half["encoder"], "prototypes": dict(half["prototypes"])}
    want["prototypes"]["bias"] = triple["prototypes"]["bias"]
    for name, value in named(found).items():
        np.testing.assert_allclose(value, named(want)[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr_rules": (("prototype/", 0.0),)}, "rule 'prototype/' matches no param"),
        ({"decay_exempt": ("pos_embed",)}, "rule 'pos_embed' matches no parameter"),
        ({"clip_norm": -1.0}, r"optim\.clip_norm=-1\.0 is negative"),
        ({"name": "adamww"}, r"optim\.name 'adamww' .*'adamw' or 'adam'"),
        ({"bb2": 0.999}, r"optim\.bb2 is not a field; did you mean 'b2'"),
        (
            {"momentum": 0.9},
            r"optim\.momentum is not a field; known: b1, b2, eps",
        ),
    ],
)
def test_make_names_what_is_wrong(small, change, message):
    with pytest.raises(UsageError, match=message):
        optimizers.make(ADAMW | change, lambda step: 0.1, small[0], clock=CLOCK)


@pytest.mark.parametrize("field", ADAMW)
def test_make_names_what_is_missing(small, field):
    fields = {k: v for k, v in ADAMW.items() if k != field}
    with pytest.raises(UsageError, match=rf"optim\.{field} is missing"):
        optimizers.make(fields, lambda step: 0.1, small[0], clock=CLOCK)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_is_multiplied_by_the_scheduled_rate(small, name):
    """Without gradients only decay is left: p times 1 - rate * decay, every step."""
    params, grads = small
    config = {"adamw": ADAMW, "sgd": SGD | {"momentum": 0.0}}[name]
    config = config | {"weight_decay": 0.1, "decay_vectors": False}
    rates = [0.5, 0.0, 2.0, 0.25]
    after = run(config, params, jax.tree.map(jnp.zeros_like, grads), rates)
    shrunk = np.prod(1 - 0.1 * np.array(rates))
    for part in params:
        want = np.asarray(params[part]["kernel"]) * shrunk
        np.testing.assert_allclose(after[part]["kernel"], want, rtol=1e-6)
    bias = params["prototypes"]["bias"]
    np.testing.assert_array_equal(after["prototypes"]["bias"], bias)


def test_clipping_is_of_the_norm_of_all_that_is_trained(small):
    """Plain SGD moves by the clipped gradient; what is frozen does not count."""
    params, grads = small
    config = SGD | {"momentum": 0.0, "weight_decay": 0.0}
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    for most in (0.5 * norm, 2 * norm):
        after = named(run(config | {"clip_norm": float(most)}, params, grads, [1.0]))
        factor = min(1.0, most / (norm + 1e-6))
        for name, p in named(params).items():
            want = p - factor * named(grads)[name]
            np.testing.assert_allclose(after[name], want, atol=1e-6, err_msg=name)
    g = grads["encoder"]["kernel"]
    grads = grads | {"prototypes": {"kernel": g * 1e9, "bias": g[0] * jnp.nan}}
    config |= {"clip_norm": 1.0, "lr_rules": (("^prototypes/", 0.0),)}
    after = run(config, params, grads, [1.0])
    want = params["encoder"]["kernel"] - g / (jnp.linalg.norm(g) + 1e-6)
    np.testing.assert_allclose(after["encoder"]["kernel"], want, atol=1e-6)
    chex.assert_trees_all_equal(after["prototypes"], params["prototypes"])


def test_clipping_is_torchs(small):
    torch = pytest.importorskip("torch")
    params, grads = small
    leaves = [torch.zeros(g.shape) for g in jax.tree.leaves(grads)]
    for p, g in zip(leaves, jax.tree.leaves(grads), strict=True):
        p.grad = torch.tensor(np.asarray(g))
    torch.nn.utils.clip_grad_norm_(leaves, 0.7)
    config = SGD | {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.7}
    after = run(config, jax.tree.map(jnp.zeros_like, params), grads, [1.0])
    for p, q in zip(leaves, jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(-q, p.grad.numpy(), rtol=1e-6)


def lars(p, g, rates, *, momentum, decay, trust):
    """MAE's LARS in float64: the rate multiplies the momentum, not what goes in."""
    p, g = np.float64(p), np.float64(g)
    velocity = np.zeros_like(p)
    for rate in rates:
        push = g
        if p.ndim > 1:
            push = g + decay * p
            push = push * trust * np.linalg.norm(p) / np.linalg.norm(push)
        velocity = momentum * velocity + push
        p = p - rate * velocity
    return p


def test_lars_takes_the_rate_after_the_momentum(small):
    params, grads = small
    config = {"name": "lars", "momentum": 0.9, "weight_decay": 0.1}
    config |= {"trust_coefficient": 0.01, "decay_vectors": False}
    config |= {"decay_exempt": (), "clip_norm": 0.0, **RULES}
    rates = [1.0, 0.1, 5.0, 0.0, 2.0]
    after = named(run(config, params, grads, rates))
    how = {"momentum": 0.9, "decay": 0.1, "trust": 0.01}
    for name, p in named(params).items():
        want = lars(p, named(grads)[name], rates, **how)
        np.testing.assert_allclose(after[name], want, rtol=1e-5, err_msg=name)


def test_a_rate_kept_at_its_peak(small):
    """SimSiam's predictor: the schedule falls, but not for it."""
    params, grads = small
    fall = Rate(lambda step: 0.1 / (step + 1), 0.1)
    config = SGD | {"lr_rules": (("^prototypes/", "peak"),)}
    updates, after = params, []
    for chosen in (config, SGD):
        tx = optimizers.make(chosen, fall, params, clock=CLOCK)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
        after.append(updates)
    chex.assert_trees_all_equal(after[0]["encoder"], after[1]["encoder"])
    third = jax.tree.map(lambda u: 3 * u, after[1]["prototypes"])
    chex.assert_trees_all_close(after[0]["prototypes"], third, rtol=1e-6)
    with pytest.raises(UsageError, match="'peek' .*'peak'"):
        optimizers.make(
            SGD | {"lr_rules": (("^prot", "peek"),)}, fall, params, clock=CLOCK
        )


def test_frozen_for_so_many_epochs(small):
    """Two epochs of two steps: nothing moves, and no momentum is left from then."""
    params, grads = small
    config = SGD | {"freeze_rules": (("^prototypes/", 2.0),)}
    still = run(config, params, grads, [0.1] * 4)
    chex.assert_trees_all_equal(still["prototypes"], params["prototypes"])
    moved = run(config, params, grads, [0.1] * 5)
    once = run(SGD | {"weight_decay": 0.0}, params, grads, [0.1])
    plain = run(config | {"weight_decay": 0.0}, params, grads, [0.1] * 5)
    chex.assert_trees_all_close(plain["prototypes"], once["prototypes"], rtol=1e-6)
    assert (moved["encoder"]["kernel"] != still["encoder"]["kernel"]).all()


def test_columns_keep_length_one(small):
    params, grads = small
    config = SGD | {"unit_rules": ("^prototypes/kernel",)}
    free = run(SGD, params, grads, [0.1])["prototypes"]["kernel"]
    found = run(config, params, grads, [0.1])
    want = free / jnp.linalg.norm(free, axis=0)
    np.testing.assert_allclose(found["prototypes"]["kernel"], want, atol=1e-6)
    chex.assert_trees_all_equal(
        found["encoder"], run(SGD, params, grads, [0.1])["encoder"]
    )
