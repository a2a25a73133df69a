"""Branches of a siamese network: batches of images that go through side by side.

A branch is a view of the images or a mixture of a view. This file does what every loss
needs: it sends branches through the network, jointly or in turn, and keeps the teacher,
a copy of the network that follows it as a moving average.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.sharding import sub_batches
from mixjax.state import Array, Network, Tree

# Outputs with a row for each example. All others, such as SwAV's prototypes, belong to
# the batch as a whole: they are neither split by branch nor re-ordered.
BY_EXAMPLE = ("features", "projection", "prediction", "embedding", "scores", "map")
TAUGHT = ("encoder", "projector")  # the parts a teacher has; it never has a predictor


class Branch(NamedTuple):
    """One batch of images."""

    view: int
    mixture: int  # 0: the clean view, k: its k-th mixture


Outputs = dict[Branch, dict]  # of a network, by branch


def in_order(branches: Iterable[Branch]) -> list[Branch]:
    """Each branch once, in the order of first appearance."""
    return list(dict.fromkeys(branches))


@jax.custom_vjp
def permuted(x: Array, places: Array) -> Array:
    """x [G, n, ...] with row places[g, i] at i; `places` [G, n] are permutations.

    The gradient is written by hand as the inverse permutation, another gather: JAX
    would derive a scatter, which is slower and, on a GPU, not reproducible.
    """
    return jax.vmap(lambda rows, place: jnp.take(rows, place, axis=0))(x, places)


def _permuted_forward(x, places):
    return permuted(x, places), places


def _permuted_backward(places, g):
    return permuted(g, jnp.argsort(places, axis=1)), None


permuted.defvjp(_permuted_forward, _permuted_backward)


def reordered(outputs: dict, places: Array) -> dict:
    """Outputs by example [B, ...] in the order `places` [G, n] within each group."""

    def reorder(x):
        rows = sub_batches.split(x, places.shape[0])  # [G, n, ...]
        return sub_batches.merge(permuted(rows, places))  # [B, ...]

    return {k: reorder(v) if k in BY_EXAMPLE else v for k, v in outputs.items()}


# --- through the network -------------------------------------------------------------


def interleave(batches: Sequence[Array]) -> Array:
    """V batches [B, ...] -> [B * V, ...], the V rows of an example side by side.

    The batch is sharded over devices by rows: concatenated, the batches would have to
    move between devices; interleaved, every row stays where it is.
    """
    x = jnp.stack(batches, axis=1)
    return x.reshape(-1, *x.shape[2:])  # [B * V, ...]


def separate(outputs: dict, count: int) -> list[dict]:
    """The inverse of interleave for a dict of outputs: one dict for each batch."""

    def nth(x, i):
        return x.reshape(-1, count, *x.shape[1:])[:, i]  # [B, ...]

    return [
        {k: nth(v, i) if k in BY_EXAMPLE else v for k, v in outputs.items()}
        for i in range(count)
    ]


def forward(
    network: Network, params, stats, inputs: Outputs, parts, *, joint: bool
) -> tuple[Outputs, Tree]:
    """Runs `parts` on every branch in training mode: (outputs, running statistics).

    In turn, in the order of `inputs`, each branch normalised by its own statistics;
    or, if `joint`, all branches of one input size in a single batch.
    """

    def run(x, stats):
        out, stats = network.run(params, stats, x, parts, train=True)
        return {k: v for k, v in out.items() if k != "images"}, stats

    outputs = {}
    if not joint:
        for branch, x in inputs.items():
            outputs[branch], stats = run(x, stats)
        return outputs, stats
    # SwAV's small crops cannot share an array with its large ones.
    by_size = {}
    for branch, x in inputs.items():
        by_size.setdefault(jax.tree.leaves(x)[0].shape, []).append(branch)
    for members in by_size.values():
        x = jax.tree.map(
            lambda *batches: interleave(batches), *map(inputs.get, members)
        )
        joined, stats = run(x, stats)
        outputs |= zip(members, separate(joined, len(members)), strict=True)
    return outputs, stats


def reader(network: Network, evaluate: str) -> Callable:
    """Returns (state, images) -> [B, D] float32, the output that evaluators read.

    evaluate: "features", the encoder's, or "projection", the projector's; UsageError
    for any other name.
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
    """{"params", "stats"}: a copy of the parts of a new network that a teacher has."""
    taught = lambda tree: {k: v for k, v in tree.items() if k in TAUGHT}
    return {"params": taught(params), "stats": taught(stats)}


def teach(
    network: Network, teacher: Tree, images: dict[Branch, Array], shuffle: bool, rng
) -> tuple[Outputs, Tree]:
    """(the teacher's outputs for each branch, its running statistics); no gradient.

    It normalises by the statistics of the batch, as in training. shuffle: each batch
    is encoded in random order, and its outputs are put back into the original order
    (MoCo's ShuffleBN), so that statistics of groups do not give the positive away.
    """
    outputs, stats = {}, teacher["stats"]
    parts = [part for part in network.parts if part in TAUGHT]
    for number, (branch, x) in enumerate(images.items()):
        order = jax.random.permutation(jax.random.fold_in(rng, number), x.shape[0])
        x = jnp.take(x, order, axis=0) if shuffle else x
        encoded, stats = network.run(
            teacher["params"], stats, {"images": x}, parts, train=True
        )
        encoded = {k: v for k, v in encoded.items() if k in BY_EXAMPLE}
        inverse = jnp.argsort(order)[None]  # [1, B], a single group
        outputs[branch] = reordered(encoded, inverse) if shuffle else encoded
    return jax.lax.stop_gradient((outputs, stats))


def follow(teacher: Tree, params: Tree, stats: Tree, momentum: Array) -> Tree:
    """The teacher after a step: momentum * teacher + (1 - momentum) * params.

    Only parameters are averaged (MoCo, equation 2). The running statistics become
    `stats`, which the teacher gathered from the batches it encoded (MoCo, BYOL).
    """
    average = lambda t, p: (t * momentum + p * (1 - momentum)).astype(t.dtype)
    trained = {part: params[part] for part in teacher["params"]}
    averaged = jax.tree.map(average, teacher["params"], trained)
    return {"params": averaged, "stats": stats}


def distance(teacher: Tree, params: Tree) -> Array:
    """|teacher - params| / |params|, over the parameters that the teacher has."""
    trained = {part: params[part] for part in teacher["params"]}
    square = lambda x: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(x))
    difference = jax.tree.map(jnp.subtract, teacher["params"], trained)
    return jnp.sqrt(square(difference) / square(trained))
