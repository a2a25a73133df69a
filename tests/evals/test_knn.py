"""kNN of any size and cut against plain NumPy and scikit-learn."""

import functools
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from configs import quickstart
from mixjax import data
from mixjax.errors import Preempted
from mixjax.evals import knn
from mixjax.sharding import meshes

CLASSES = 10


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(fsdp=2)


def examples(n, queries=37, seed=0):
    """Queries [Q, 6], bank [n, 6] and labels [n]."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(queries + n, 6)).astype(np.float32)
    return points[:queries], points[queries:], rng.integers(0, CLASSES, n)


def votes(nearness, labels, k, weight):
    """[Q, classes]: the k nearest, the first of equals, each with its weight."""
    found = np.zeros((len(nearness), CLASSES))
    for q, row in enumerate(nearness):
        for i in np.argsort(-row, kind="stable")[:k]:
            found[q, labels[i]] += weight(row[i])
    return found


def unit(x):
    return np.float64(x) / np.linalg.norm(np.float64(x), axis=1)[:, None]


def weighted(queries, bank, labels, k, temperature):
    cosine = unit(queries) @ unit(bank).T
    return votes(cosine, labels, k, lambda c: np.exp(c / temperature))


def majority(queries, bank, labels, k):
    distance = np.square(queries[:, None] - bank[None]).sum(axis=-1)
    return votes(-distance, labels, k, lambda _: 1)


# 203 and 3 do not divide over 8 devices, 37 queries not into chunks of 16.
@pytest.mark.parametrize("n, k", [(203, 9), (200, 1), (11, 50), (3, 3)])
def test_classify_agrees_with_numpy(mesh, n, k):
    queries, bank, labels = examples(n)
    how = {"k": k, "classes": CLASSES, "chunk": 16, "mesh": mesh}
    found = knn.classify(knn.majority_vote, queries, bank, labels, **how)
    want = majority(queries, bank, labels, k).argmax(axis=1)
    np.testing.assert_array_equal(found, want)
    how["temperature"] = 0.1
    found = knn.classify(knn.weighted_vote, queries, bank, labels, **how)
    want = weighted(queries, bank, labels, k, 0.1)
    np.testing.assert_array_equal(found, want.argmax(axis=1))


def test_classify_agrees_with_scikit_learn(mesh):
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries, bank, labels = examples(203, queries=200, seed=1)
    how = {"k": 7, "classes": CLASSES, "chunk": 64, "mesh": mesh}
    plain = neighbors.KNeighborsClassifier(7, algorithm="brute").fit(bank, labels)
    found = knn.classify(knn.majority_vote, queries, bank, labels, **how)
    np.testing.assert_array_equal(found, plain.predict(queries))
    # On the unit sphere the cosine is 1 - distance^2 / 2.
    close = lambda distance: np.exp((1 - np.square(distance) / 2) / 0.2)
    sphere = neighbors.KNeighborsClassifier(7, weights=close, algorithm="brute")
    sphere.fit(unit(bank), labels)
    how["temperature"] = 0.2
    found = knn.classify(knn.weighted_vote, queries, bank, labels, **how)
    np.testing.assert_array_equal(found, sphere.predict(unit(queries)))


def test_the_vote_of_equals(mesh):
    """Equal distances: the smaller index; equal votes: the smaller class."""
    point = np.ones((1, 6), np.float32)
    how = {"classes": CLASSES, "chunk": 4, "mesh": mesh}
    same = functools.partial(knn.classify, knn.majority_vote, point, **how)
    bank = np.repeat(point, 20, axis=0)
    assert same(bank, np.array([3] + 19 * [1]), k=1) == 3
    assert same(bank, np.array(19 * [1] + [0]), k=19) == 1
    assert same(bank, np.array(10 * [4] + 10 * [2]), k=20) == 2


best = jax.jit(knn.best, static_argnums=1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 5, 24]))
def test_the_cut_of_the_bank_does_not_matter(seed, k):
    """Scores with many equals; 24 of them in 1, 2 or 8 shards."""
    scores = np.random.default_rng(seed).integers(0, 6, (4, 24)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    for shards in (1, 2, 8):
        cut = scores.reshape(4, shards, -1).transpose(1, 0, 2)  # [S, Q, n]
        values, places = best(cut, k)
        np.testing.assert_array_equal(places, order)
        np.testing.assert_array_equal(values, np.take_along_axis(scores, order, 1))


def test_a_signal_is_heard_between_chunks(mesh):
    queries, bank, labels = examples(16)
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Preempted

    how = {"k": 1, "classes": CLASSES, "mesh": mesh, "check": check}
    run = functools.partial(knn.classify, knn.majority_vote, queries, bank, labels)
    with pytest.raises(Preempted):
        run(chunk=8, **how)
    calls.clear()
    assert len(run(chunk=20, **how)) == 37 and len(calls) == 2


def test_later_evaluations_compile_nothing(mesh):
    """Of other features and the same settings; other settings are another vote."""
    traced = []

    def vote(*arrays, **how):
        traced.append(how["temperature"])
        return knn.weighted_vote(*arrays, **how)

    how = {"k": 3, "classes": CLASSES, "chunk": 16, "mesh": mesh}
    for temperature, seed in ((0.1, 0), (0.1, 1), (0.2, 0)):
        found = knn.classify(
            vote, *examples(50, seed=seed), temperature=temperature, **how
        )
        assert len(found) == 37
    assert traced == [0.1, 0.2]


def open_sets(mesh, **changes):
    config = quickstart.get_config().data
    config.update(changes)
    return data.make(config, batch=8, seed=0, mesh=mesh)


FIELDS = {"vote": "weighted", "k": 20, "temperature": 0.07}
FIELDS |= {"bank": 0, "queries": 0, "chunk": 64}
PIXELS = SimpleNamespace(features=lambda state, images: images.reshape(len(images), -1))


@pytest.mark.parametrize("bank, queries", [(300, 0), (0, 50)])
def test_the_evaluator_gives_the_accuracy_of_pixels(mesh, bank, queries):
    sets = open_sets(mesh, eval_view="normalize((.3,), (.4,))")
    context = {"sets": sets, "method": PIXELS, "mesh": mesh, "check": lambda: None}
    fields = FIELDS | {"bank": bank, "queries": queries}
    found = knn.make(**fields, **context)({}, 0, None)
    with np.load(Path(data.__file__).parent / "digits.npz") as file:
        pixels = file["image"].reshape(1797, 64).astype(int) * 255 // 16
        labels = file["label"]
    features = (pixels / 255 - 0.3) / 0.4
    near = np.arange(bank) * 1437 // bank if bank else np.arange(1437)
    asked = 1437 + (np.arange(queries) * 360 // queries if queries else np.arange(360))
    scores = weighted(features[asked], features[near], labels[near], 20, 0.07)
    top1 = 100 * (scores.argmax(axis=1) == labels[asked]).mean()
    assert 85 < top1 < 100
    sizes = {"knn/examples": len(asked), "knn/bank": len(near)}
    assert found == {"knn/k=20/top1": pytest.approx(top1), **sizes}


@pytest.mark.parametrize("labels, missing", [(False, "labels"), (True, "held-out")])
def test_no_evaluator_without_labels_or_a_test_split(
    mesh, tmp_path, said, labels, missing
):
    arrays = {"train_image": np.zeros((8, 4, 4, 1), np.uint8)}
    if labels:
        arrays["train_label"] = np.arange(8)
    else:
        arrays["test_image"] = arrays["train_image"]
    np.savez(tmp_path / "few.npz", **arrays)
    sets = open_sets(mesh, source=f"npz:{tmp_path}/few.npz")
    context = {"sets": sets, "method": PIXELS, "mesh": mesh, "check": None}
    assert knn.make(**FIELDS, **context) is None
    assert [line for line in said if f"no {missing}" in line and "kNN" in line]


def test_examples_without_a_label_are_no_neighbours(mesh, tmp_path):
    """As most of STL-10's training pictures are: nearest of all, and not counted."""
    level = lambda *values: np.array(values, np.uint8)[:, None, None, None]
    arrays = {"train_image": level(10, 200, 20, 190, 20, 190, 20, 190)}
    arrays["train_label"] = [0, 1] + 6 * [-1]
    arrays |= {"test_image": level(20, 190), "test_label": [0, 1]}
    np.savez(tmp_path / "some.npz", **arrays)
    view = "normalize((.5,), (1.,))"
    sets = open_sets(mesh, source=f"npz:{tmp_path}/some.npz", eval_view=view)
    context = {"sets": sets, "method": PIXELS, "mesh": mesh, "check": lambda: None}
    found = knn.make(**FIELDS | {"vote": "majority", "k": 1}, **context)({}, 0, None)
    assert found == {"knn/k=1/top1": 100, "knn/examples": 2, "knn/bank": 2}
