"""Branches of a siamese network: batches of images that go through side by side.

A branch is a view of the images or a mixture of a view. Here is what is done to all of
them whatever the loss: which go through the network together, in what order, and the
teacher, a copy of the network that follows it as a moving average.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.sharding import sub_batches
from mixjax.state import Array, Network, Tree

# Outputs with a row for each example. What is not named here is common to the batch: it
# is neither cut up by branch nor re-ordered.
BY_EXAMPLE = ("features", "projection", "prediction", "embedding", "scores", "map")
TAUGHT = ("encoder", "projector")  # parts that a teacher has; a predictor is not


class Branch(NamedTuple):
    """One batch of images."""

    view: int
    mixture: int  # 0: the view as it is, k: its k-th mixture


Outputs = dict[Branch, dict]  # of a network, by branch


def in_order(branches: Iterable[Branch]) -> list[Branch]:
    """Each branch once, by its first appearance."""
    return list(dict.fromkeys(branches))


@jax.custom_vjp
def permuted(x: Array, places: Array) -> Array:
    """x [G, n, ...] with row places[g, i] at i; `places` [G, n] are permutations.

    Its gradient is the inverse permutation; the derived one would be a scatter.
    """
    return jax.vmap(lambda rows, place: jnp.take(rows, place, axis=0))(x, places)


def _permuted_forward(x, places):
    return permuted(x, places), places


def _permuted_backward(places, g):
    return permuted(g, jnp.argsort(places, axis=1)), None


permuted.defvjp(_permuted_forward, _permuted_backward)


def reordered(outputs: dict, places: Array) -> dict:
    """Outputs by example [B, ...] in the order `places` [G, n] within each group."""

    def one(x):
        rows = sub_batches.split(x, places.shape[0])  # [G, n, ...]
        return sub_batches.merge(permuted(rows, places))  # [B, ...]

    return {k: one(v) if k in BY_EXAMPLE else v for k, v in outputs.items()}


# --- through the network -------------------------------------------------------------


def interleave(batches: Sequence[Array]) -> Array:
    """V times [B, ...] -> [B * V, ...], the V of an example together.

    Put one after the other, they would have to move between devices.
    """
    x = jnp.stack(batches, axis=1)
    return x.reshape(-1, *x.shape[2:])  # [B * V, ...]


def separate(outputs: dict, count: int) -> list[dict]:
    """The inverse of interleave, for all outputs by example."""

    def nth(x, i):
        return x.reshape(-1, count, *x.shape[1:])[:, i]  # [B, ...]

    return [
        {k: nth(v, i) if k in BY_EXAMPLE else v for k, v in outputs.items()}
        for i in range(count)
    ]


def forward(
    network: Network, params, stats, inputs: Outputs, parts, *, together: bool
) -> tuple[Outputs, Tree]:
    """Trains `parts` on each branch: (what they put out, batch statistics).

    One after the other in the order of `inputs`, each with batch statistics of its
    own; or `together`, in one batch for each size of input.
    """

    def run(x, stats):
        out, stats = network.run(params, stats, x, parts, train=True)
        return {k: v for k, v in out.items() if k != "images"}, stats

    outputs = {}
    if not together:
        for branch, x in inputs.items():
            outputs[branch], stats = run(x, stats)
        return outputs, stats
    sizes = {}
    for branch, x in inputs.items():
        sizes.setdefault(jax.tree.leaves(x)[0].shape, []).append(branch)
    for same in sizes.values():
        x = jax.tree.map(lambda *batches: interleave(batches), *map(inputs.get, same))
        found, stats = run(x, stats)
        outputs |= zip(same, separate(found, len(same)), strict=True)
    return outputs, stats


def reader(network: Network, evaluate: str) -> Callable:
    """(state, images) -> [B, D] float32, what evaluators read of a siamese network.

    evaluate: "features" of the encoder, or the "projection" of them. UsageError else.
    """
    check_name("method.evaluate", evaluate, ["features", "projection"])
    parts = ["encoder"] if evaluate == "features" else ["encoder", "projector"]

    def features(state, images):
        outputs, _ = network.run(
            state.params, state.stats, {"images": images}, parts, train=False
        )
        return outputs[evaluate].astype(jnp.float32)

    return features


# --- the teacher ---------------------------------------------------------------------


def new_teacher(params: Tree, stats: Tree) -> Tree:
    """{"params", "stats"}: what is taught of a network that has just begun."""
    keep = lambda tree: {k: v for k, v in tree.items() if k in TAUGHT}
    return {"params": keep(params), "stats": keep(stats)}


def teach(
    network: Network, teacher: Tree, images: dict[Branch, Array], shuffle: bool, rng
) -> tuple[Outputs, Tree]:
    """What the teacher puts out for each branch, and its batch statistics; no gradient.

    It normalises with statistics of the batch, as in training. shuffle: each batch goes
    through in a random order and comes back in its own (MoCo's ShuffleBN).
    """
    outputs, stats = {}, teacher["stats"]
    parts = [part for part in network.parts if part in TAUGHT]
    for number, (branch, x) in enumerate(images.items()):
        order = jax.random.permutation(jax.random.fold_in(rng, number), x.shape[0])
        x = jnp.take(x, order, axis=0) if shuffle else x
        found, stats = network.run(
            teacher["params"], stats, {"images": x}, parts, train=True
        )
        found = {k: v for k, v in found.items() if k in BY_EXAMPLE}
        back = jnp.argsort(order)[None]
        outputs[branch] = reordered(found, back) if shuffle else found
    return jax.lax.stop_gradient((outputs, stats))


def follow(teacher: Tree, params: Tree, stats: Tree, momentum: Array) -> Tree:
    """momentum * teacher + (1 - momentum) * params; `stats` are taken as they are.

    Only parameters are averaged: the teacher's running statistics are those of what
    it has seen (MoCo, BYOL).
    """
    mix = lambda t, p: (t * momentum + p * (1 - momentum)).astype(t.dtype)
    mine = {part: params[part] for part in teacher["params"]}
    return {"params": jax.tree.map(mix, teacher["params"], mine), "stats": stats}


def distance(teacher: Tree, params: Tree) -> Array:
    """|teacher - params| / |params| over all tensors that the teacher has."""
    mine = {part: params[part] for part in teacher["params"]}
    square = lambda x: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(x))
    apart = jax.tree.map(jnp.subtract, teacher["params"], mine)
    return jnp.sqrt(square(apart) / square(mine))
