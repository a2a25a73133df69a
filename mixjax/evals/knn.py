"""Exact k-nearest-neighbour classification, on the devices.

There are two votes. The weighted vote of the MoCo and Un-Mix code (Wu et al., CVPR
2018) normalises features to length 1 and scores a class by the sum of exp(cosine / T)
over its members among the k nearest. The plain 5-NN of HTDT takes the Euclidean
distance between unnormalised features and a majority vote; ties go to the smallest
class.

The bank of training features is sharded over the devices: each finds its own k nearest,
and the best of those are the k nearest of all. Everything is float32 with
full-precision products.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.data import Data
from mixjax.errors import UsageError, check_name
from mixjax.evals.features import embedder, extract
from mixjax.sharding import meshes

Array = jax.Array
log = logging.getLogger("mixjax")
LEDGER = True


def unit(x: Array) -> Array:
    """Rows scaled to length 1; a row of zeros stays so."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def best(scores: Array, k: int) -> tuple[Array, Array]:
    """The k largest of scores [S, Q, n] over S and n: (values, indices), [Q, k] each.

    Indices count through the shards, 0 .. S n - 1. Of equal scores the lower index
    comes first.
    """
    shards, queries, n = scores.shape
    # Within each shard first: only S k candidates per query cross devices.
    values, places = jax.lax.top_k(scores, min(k, n))  # [S, Q, k]
    places = places + jnp.arange(shards)[:, None, None] * n
    values = values.transpose(1, 0, 2).reshape(queries, -1)  # [Q, S * k]
    places = places.transpose(1, 0, 2).reshape(queries, -1)
    values, nth = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(places, nth, axis=1)


def products(queries: Array, bank: Array) -> Array:
    """queries [Q, D], bank [S, n, D] -> inner products [S, Q, n]."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("qd,snd->sqn", queries, bank, precision=exact)


def weighted_vote(
    queries: Array,
    bank: Array,
    labels: Array,
    valid: Array,
    *,
    k: int,
    classes: int,
    temperature: float,
) -> Array:
    """Class scores [Q, classes] of the weighted vote.

    queries: [Q, D]; bank: [S, n, D], in S shards; labels: [S, n] int; valid: [S, n]
    bool, False for padding.
    """
    cosine = products(unit(queries), unit(bank))
    cosine = jnp.where(valid[:, None, :], cosine, -jnp.inf)
    values, places = best(cosine, k)  # [Q, k]
    votes = jnp.exp(values / temperature)
    members = jax.nn.one_hot(labels.reshape(-1)[places], classes)  # [Q, k, classes]
    return (votes[:, :, None] * members).sum(axis=1)


def majority_vote(
    queries: Array, bank: Array, labels: Array, valid: Array, *, k: int, classes: int
) -> Array:
    """Votes [Q, classes] of the k nearest by Euclidean distance.

    Shapes are those of weighted_vote.
    """
    # -|q - b|^2 + |q|^2: |q|^2 is the same for all b and does not change their order.
    nearness = 2 * products(queries, bank) - jnp.square(bank).sum(-1)[:, None, :]
    nearness = jnp.where(valid[:, None, :], nearness, -jnp.inf)
    _, places = best(nearness, k)
    return jax.nn.one_hot(labels.reshape(-1)[places], classes).sum(axis=1)


@functools.cache
def jit_vote(vote: Callable, mesh, **options) -> Callable:
    """`vote` with these options, jitted once for all evaluations of a process."""
    everywhere = meshes.replicated(mesh)
    return jax.jit(functools.partial(vote, **options), out_shardings=everywhere)


def shard_rows(x: np.ndarray, mesh) -> Array:
    """x [N, ...] padded with zeros and sharded over the mesh: [S, n, ...]."""
    shards = mesh.size
    rows = -(-len(x) // shards)
    padding = np.zeros((shards * rows - len(x), *x.shape[1:]), x.dtype)
    x = np.concatenate([x, padding])
    return meshes.put(x.reshape(shards, rows, *x.shape[1:]), meshes.batched(mesh))


def classify(
    vote: Callable,
    queries: np.ndarray,
    bank: np.ndarray,
    labels: np.ndarray,
    *,
    k: int,
    classes: int,
    chunk: int,
    mesh,
    check: Callable = lambda: None,
    **options,
) -> np.ndarray:
    """Predicted classes [Q] of queries [Q, D] by `vote` over bank [N, D], labels [N].

    Queries run in chunks of `chunk` rows, and `check` is called before each. k is
    limited to N. options: further arguments of `vote`.
    """
    n, d = bank.shape
    bank = shard_rows(bank.astype(np.float32), mesh)  # [S, n, D]
    labels = shard_rows(labels.astype(np.int32), mesh)
    valid = shard_rows(np.ones(n, bool), mesh)
    scores = jit_vote(vote, mesh, k=min(k, n), classes=classes, **options)
    predicted = []
    for start in range(0, len(queries), chunk):
        check()
        rows = queries[start : start + chunk]
        padded = np.zeros((chunk, d), np.float32)  # always one shape: one compilation
        padded[: len(rows)] = rows
        padded = meshes.put(padded, meshes.replicated(mesh))
        class_scores = jax.device_get(scores(padded, bank, labels, valid))
        predicted.append(class_scores.argmax(axis=1)[: len(rows)])
    return np.concatenate(predicted)


class Neighbours(NamedTuple):
    """What evaluates features by their nearest neighbours."""

    vote: Callable  # weighted_vote or majority_vote
    options: dict  # its further arguments
    k: int
    classes: int
    chunk: int
    bank: Data  # labelled training examples
    held_out: Data
    embed: Callable  # see features.embedder
    mesh: object
    check: Callable


def describe_obstacle(sets) -> str:
    """What keeps the data from being classified by neighbours, for the log."""
    if sets.several:
        return "several labels per picture"
    return "no held-out split" if sets.classes else "no labels"


def evaluate(knn: Neighbours, state, step: int, writer) -> dict[str, float]:
    """{metric: value}: top-1 in percent, and how many examples it stands on."""
    bank, bank_labels = extract(knn.embed, knn.bank, state, knn.check)
    labelled = bank_labels >= 0  # most of STL-10's training images have no label
    bank, bank_labels = bank[labelled], bank_labels[labelled]
    queries, truth = extract(knn.embed, knn.held_out, state, knn.check)
    predicted = classify(
        knn.vote,
        queries,
        bank,
        bank_labels,
        k=knn.k,
        classes=knn.classes,
        chunk=knn.chunk,
        mesh=knn.mesh,
        check=knn.check,
        **knn.options,
    )
    top1 = 100 * float((predicted == truth).mean())
    sizes = {"knn/examples": len(truth), "knn/bank": len(bank_labels)}
    return {f"knn/k={knn.k}/top1": top1, **sizes}


def make(
    *,
    vote: str,
    k: int,
    temperature: float,
    bank: int,
    queries: int,
    chunk: int,
    sets,
    method,
    mesh,
    check: Callable,
) -> Callable | None:
    """The evaluator: kNN top-1 of the held-out split against the training split.

    vote: "weighted" with `temperature`, or "majority", which has none. bank, queries:
    number of training and of held-out examples, spread evenly; 0 for all. chunk:
    queries at a time. Returns None, and logs why, if the data has no labels, several
    labels per image, or no held-out split.
    """
    check_name("evals.knn.vote", vote, ["weighted", "majority"])
    if k < 1 or temperature <= 0:
        raise UsageError(
            f"evals.knn: k={k} must be at least 1, and temperature={temperature} above "
            f"0."
        )
    held_out = sets.test(queries) if sets.classes and not sets.several else None
    if held_out is None:
        log.info("the data has %s: no kNN", describe_obstacle(sets))
        return None
    weighted = vote == "weighted"
    bank_data = sets.bank(bank)
    knn = Neighbours(
        vote=weighted_vote if weighted else majority_vote,
        options={"temperature": temperature} if weighted else {},
        k=k,
        classes=sets.classes,
        chunk=chunk,
        bank=bank_data,
        held_out=held_out,
        embed=embedder(method.features, bank_data, mesh),
        mesh=mesh,
        check=check,
    )
    return functools.partial(evaluate, knn)
