"""kNN against the MoCo and HTDT code, and against scikit-learn's predictions."""

import functools

import jax
import numpy as np
import pytest

from mixjax.evals import knn
from mixjax.sharding import meshes


def parts(ref, shards):
    """The bank of the file cut into `shards`, padded with rows that do not count."""
    bank, labels = ref["in/bank"], ref["in/bank_labels"]
    each = -(-len(bank) // shards)
    pad = shards * each - len(bank)
    valid = np.arange(shards * each) < len(bank)
    bank = np.concatenate([bank, np.zeros((pad, bank.shape[1]), bank.dtype)])
    labels = np.concatenate([labels, np.zeros(pad, labels.dtype)])
    return [a.reshape(shards, each, *a.shape[1:]) for a in (bank, labels, valid)]


@pytest.mark.parametrize("shards", [1, 7])
def test_knn_monitor(reference, shards):
    ref = reference("knn_monitor")
    options = {"k": ref["hp/knn_k"], "classes": ref["hp/classes"]}
    vote = functools.partial(knn.weighted_vote, temperature=ref["hp/knn_t"], **options)
    scores = jax.jit(vote)(ref["in/queries"], *parts(ref, shards))
    ref.check("weighted_scores", scores)
    top1 = np.asarray(scores.argmax(axis=1), np.int32)
    ref.check("weighted_top1", top1)
    ref.check("weighted_accuracy", (top1 == ref["in/query_labels"]).mean())
    options["k"] = ref["hp/vote_k"]
    votes = jax.jit(functools.partial(knn.majority_vote, **options))(
        ref["in/queries"], *parts(ref, shards)
    )
    ref.check("vote_pred", np.asarray(votes.argmax(axis=1), np.int32))
    tied = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) > 1
    ref.check("vote_ties", np.int32(tied.sum()))


@pytest.mark.parametrize("shards", [1, 8])
def test_knn_vs_sklearn(reference, shards):
    ref = reference("knn_vs_sklearn")
    classes = ref["hp/classes"]
    majority = functools.partial(knn.majority_vote, k=ref["hp/vote_k"], classes=classes)
    votes = jax.jit(majority)(ref["in/queries"], *parts(ref, shards))
    ref.check("vote_counts", np.asarray(votes, np.int32))
    predicted = np.asarray(votes.argmax(axis=1), np.int32)
    ref.check("vote_pred", predicted)
    ref.check("vote_accuracy", (predicted == ref["in/query_labels"]).mean())
    weighted = functools.partial(
        knn.weighted_vote,
        k=ref["hp/weighted_k"],
        classes=classes,
        temperature=ref["hp/weighted_t"],
    )
    scores = jax.jit(weighted)(ref["in/queries"], *parts(ref, shards))
    ref.check("weighted_scores", scores)
    ref.check("weighted_pred", np.asarray(scores.argmax(axis=1), np.int32))


def test_classify_on_a_mesh(reference):
    """Chunks, padding and eight devices change no prediction."""
    ref = reference("knn_vs_sklearn")
    options = {"classes": ref["hp/classes"], "mesh": meshes.make(fsdp=2), "chunk": 17}
    arrays = ref["in/queries"], ref["in/bank"], ref["in/bank_labels"]
    found = knn.classify(knn.majority_vote, *arrays, k=ref["hp/vote_k"], **options)
    np.testing.assert_array_equal(found, ref["out/vote_pred"])
    temperature, k = ref["hp/weighted_t"], ref["hp/weighted_k"]
    options["temperature"] = temperature
    found = knn.classify(knn.weighted_vote, *arrays, k=k, **options)
    np.testing.assert_array_equal(found, ref["out/weighted_pred"])
