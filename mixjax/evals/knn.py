"""k-nearest-neighbour classification, exact, on the devices.

Two forms: the weighted vote of the MoCo and Un-Mix code (Wu et al., CVPR 2018):
features of length 1, score of a class = sum of exp(cosine / T) over its members among
the k nearest; and the plain 5-nn of HTDT: Euclidean distance between features as they
are, majority vote, ties to the smallest class.

The bank is cut over the devices, each finds its own k best, and the best of those are
the k best of all. Everything is float32 with full-precision products.
"""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.evals.features import embedder, extract
from mixjax.sharding import meshes

Array = jax.Array
log = logging.getLogger("mixjax")
LEDGER = True


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def best(scores: Array, k: int) -> tuple[Array, Array]:
    """The k largest of scores [S, Q, n] over S and n: values and indices S * n, [Q, k].

    Equal scores go to the smaller index.
    """
    shards, queries, n = scores.shape
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

    queries: [Q, D]; bank: [S, n, D], S parts of any number; labels, valid: [S, n].
    """
    cosine = products(unit(queries), unit(bank))
    cosine = jnp.where(valid[:, None, :], cosine, -jnp.inf)
    values, places = best(cosine, k)  # [Q, k]
    votes = jnp.exp(values / temperature)
    found = jax.nn.one_hot(labels.reshape(-1)[places], classes)  # [Q, k, classes]
    return (votes[:, :, None] * found).sum(axis=1)


def majority_vote(
    queries: Array, bank: Array, labels: Array, valid: Array, *, k: int, classes: int
) -> Array:
    """Votes [Q, classes] of the k nearest by Euclidean distance; shapes as above."""
    # |q - b|^2 without |q|^2, which is the same for all b.
    nearness = 2 * products(queries, bank) - jnp.square(bank).sum(-1)[:, None, :]
    nearness = jnp.where(valid[:, None, :], nearness, -jnp.inf)
    _, places = best(nearness, k)
    return jax.nn.one_hot(labels.reshape(-1)[places], classes).sum(axis=1)


@functools.cache
def scorer(vote: Callable, mesh, **how) -> Callable:
    """`vote` with the settings of `how`, jitted once for all evaluations."""
    everywhere = meshes.replicated(mesh)
    return jax.jit(functools.partial(vote, **how), out_shardings=everywhere)


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

    The bank lies cut over `mesh`; queries go through in chunks of `chunk`; `check` is
    called between them. k is at most N.
    """
    n, d = bank.shape
    parts = mesh.size
    each = -(-n // parts)
    pad = parts * each - n

    def cut(x):
        x = np.concatenate([x, np.zeros((pad, *x.shape[1:]), x.dtype)])
        return meshes.put(x.reshape(parts, each, *x.shape[1:]), meshes.batched(mesh))

    bank, labels = cut(bank.astype(np.float32)), cut(labels.astype(np.int32))
    valid = cut(np.ones(n, bool))
    scores = scorer(vote, mesh, k=min(k, n), classes=classes, **options)
    predicted = []
    for start in range(0, len(queries), chunk):
        check()
        part = np.zeros((chunk, d), np.float32)
        rows = queries[start : start + chunk]
        part[: len(rows)] = rows
        part = meshes.put(part, meshes.replicated(mesh))
        result = jax.device_get(scores(part, bank, labels, valid))
        predicted.append(result.argmax(axis=1)[: len(rows)])
    return np.concatenate(predicted)


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
    """The evaluator: kNN top-1 of the test split against the training split.

    vote: "weighted" with `temperature`, or "majority", which has none. bank, queries:
    how many training and held-out examples, spread evenly; 0 for all.
    chunk: queries at a time. None, with a line that says so, if the data has no labels,
    several per picture, or no held-out split.
    """
    check_name("evals.knn.vote", vote, ["weighted", "majority"])
    ways = {
        "weighted": (weighted_vote, {"temperature": temperature}),
        "majority": (majority_vote, {}),
    }
    function, options = ways[vote]
    if k < 1 or temperature <= 0:
        raise UsageError(
            f"evals.knn: k={k} must be 1 or more, temperature={temperature} above 0."
        )
    one_each = sets.classes and not sets.several
    held_out = sets.test(queries) if one_each else None
    if held_out is None:
        what = "no held-out split" if sets.classes else "no labels"
        what = "several labels per picture" if sets.several else what
        log.info("the data has %s: no kNN", what)
        return None
    data = sets.bank(bank)
    embed = embedder(method.features, data, mesh)

    def run(state, step, writer):
        bank_features, bank_labels = extract(embed, data, state, check)
        known = bank_labels >= 0  # most of STL-10's training pictures have no label
        bank_features, bank_labels = bank_features[known], bank_labels[known]
        features, truth = extract(embed, held_out, state, check)
        predicted = classify(
            function,
            features,
            bank_features,
            bank_labels,
            k=k,
            classes=sets.classes,
            chunk=chunk,
            mesh=mesh,
            check=check,
            **options,
        )
        top1 = 100 * float((predicted == truth).mean())
        sizes = {"knn/examples": len(truth), "knn/bank": len(bank_labels)}
        return {f"knn/k={k}/top1": top1, **sizes}

    return run
