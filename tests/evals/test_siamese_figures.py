"""Seeing a siamese run: health, mixtures and their weights, maps, t-SNE, histograms."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import common
from mixjax import evals, look, methods, models
from mixjax.errors import UsageError
from mixjax.evals import activation, embedding, health, histograms, pictures
from mixjax.methods import siamese
from mixjax.objectives.health import queue_age
from mixjax.run.metrics_writer import Writer
from mixjax.sharding import meshes
from mixjax.state import Clock
from tests.support import tiny

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(fsdp=1)


def opened(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


# --- health --------------------------------------------------------------------------


def entropy_of(x):
    """The definition, word for word: singular values, their shares, their entropy."""
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return np.exp(-np.sum(share * np.log(share)))


@pytest.mark.parametrize("shape", [(50, 7), (7, 50)])
def test_effective_rank_is_that_of_the_definition(shape):
    x = RNG.normal(size=shape) * RNG.uniform(0.1, 3, shape[1]) + 5
    found = health.effective_rank(x)
    assert found == pytest.approx(entropy_of(x), rel=1e-4)
    assert 1 < found < min(shape)


def test_effective_rank_where_it_is_known():
    d = 6
    axes = np.concatenate([np.eye(d), -np.eye(d)]).astype(np.float32)
    assert health.effective_rank(axes) == pytest.approx(d)
    assert health.effective_rank(axes + 100) == pytest.approx(d)
    line = RNG.normal(size=(40, 1)) * RNG.normal(size=(1, d)) + 3
    assert health.effective_rank(line.astype(np.float32)) == pytest.approx(1, abs=1e-3)
    assert health.effective_rank(np.full((40, d), 0.3, np.float32)) == 0
    unequal = np.diag([3.0, 1.0]).repeat(2, 0) * [[1], [-1], [1], [-1]]
    wanted = 4 / 3**0.75  # shares 3/4 and 1/4
    assert health.effective_rank(unequal) == pytest.approx(wanted)


def features_like(kind, n=64, d=16):
    rng = np.random.default_rng(1)
    noise, mean = rng.normal(size=(n, d)), np.zeros(d)
    if kind == "line":
        noise = rng.normal(size=(n, 1)) * np.eye(d)[0] + 1e-4 * noise
        mean = np.eye(d)[1]
    if kind in ("point", "nearly"):
        mean = np.full(d, {"point": 200.0, "nearly": 8.0}[kind])
    return (noise + mean).astype(np.float32)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("spread", None),
        ("nearly", None),  # std is 12 % of 1 / sqrt(d)
        ("point", r"standard deviation is 0\.\d% of 1/sqrt\(16\), below 5%\.$"),
        ("line", r"effective rank is 1\.\d\d of 16 dimensions, below 2\.$"),
    ],
)
def test_collapse_is_told_once_and_only_when_it_is_there(
    kind, words, mesh, monkeypatch, said
):
    x = features_like(kind)
    monkeypatch.setattr(health, "embedder", lambda *how: None)
    monkeypatch.setattr(health, "extract", lambda *how: (x, None))
    sets = type("Sets", (), {"test": lambda self, n: None, "bank": lambda self, n: n})()
    how = dict(examples=64, sets=sets, mesh=mesh, check=None)
    run = health.make(method=type("M", (), {"features": None}), **how)
    found = run(None, 7, None)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[~np.eye(64, dtype=bool)].mean()
    np.testing.assert_allclose(found["health/mean_cosine"], cosine, atol=1e-5)
    std = unit.std(axis=0, ddof=1).mean()
    np.testing.assert_allclose(found["health/feature_std"], std, rtol=1e-3)
    rank = entropy_of(unit.astype(np.float64))
    np.testing.assert_allclose(found["health/effective_rank"], rank, rtol=1e-3)
    assert found["health/examples"] == 64
    assert len(said) == (words is not None)
    if words:
        assert said[0].startswith("step 7: the features have collapsed: their ")
        assert re.search(words, said[0])


def test_both_signs_are_one_sentence():
    found = {"effective_rank": 0.0, "feature_std": 0.0}
    said = health.describe_collapse(found, 4)
    assert " and " in said and said.count(".\n") == 0 and said.endswith("below 5%.")


def test_health_of_too_few():
    with pytest.raises(UsageError, match="health.examples=2 must be"):
        health.make(examples=2, sets=None, method=None, mesh=None, check=None)


def test_queue_age():
    """Of MoCo's random rows the age of the run; of SwAV's zeros what was written."""
    moco = np.ones((12, 3))
    ages = [float(queue_age(moco, jnp.int32(step), 4)) for step in range(5)]
    assert ages == [0, 1, 2, 3, 3]
    swav = np.zeros((2, 6, 3))
    swav[:, :4] = 1
    assert float(queue_age(swav, jnp.int32(9), 4)) == 2


@pytest.mark.parametrize("more, views", [("moco", 1), ("moco_sym", 2)])
def test_queue_age_in_the_metrics(more, views):
    config = tiny.siamese(more)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(9, 9))
    x = jax.random.normal(jax.random.key(0), (32, 16, 16, 1))
    batch = {"views": (x, x), "index": jnp.arange(32)}

    def age(step):
        state = type("State", (), {})()
        variables = method.init(jax.random.key(0), batch)
        vars(state).update(variables._asdict(), step=step)
        _, aux = method.loss(state.params, state, batch, jax.random.key(0))
        return aux.metrics["queue_age"]

    assert float(jax.jit(age)(100)) == 64 / (32 * views)


# --- mixtures ------------------------------------------------------------------------


def shown(mixture, count, more="", groups=None):
    """(panels as the sheet gets them, images) of `count` pictures, jitted."""
    config = tiny.siamese("moco", mixture, more)
    for section in config.method.mixtures.values():
        section.groups = groups or section.groups
    method = methods.make(
        config.method, models.make(config.model), clock=Clock(100, 100)
    )
    x = np.arange(1, count + 1, dtype=np.float32)[:, None, None, None]
    x = x * np.ones((1, 16, 16, 1), np.float32)
    show = lambda batch: list(method.show(None, batch, jax.random.key(0)).items())
    names = []

    def values(batch):
        found = show(batch)
        names[:] = [name for name, _ in found]
        return [value for _, value in found]

    found = jax.device_get(jax.jit(values)({"views": (x,)}))
    return dict(zip(names, found, strict=True)), x


@pytest.mark.parametrize("mixture", ["unmix", "both"])
def test_what_stands_where_and_with_what_weight(mixture):
    """At place i the mixtures that hold image i by lam and by 1 - lam."""
    panels, x = shown(mixture, 7)
    assert next(iter(panels)) == "input"
    for name in {"unmix": ["unmix"], "both": ["unmix", "mixmask"]}[mixture]:
        (images, numbers), share = panels[name], panels[f"{name}: own share"]
        back, weight = panels[f"{name} in reverse order"]
        lam = numbers["lam"]
        assert share.shape == (7, 16, 16)
        np.testing.assert_allclose(share.mean(axis=(1, 2)), lam, atol=1e-5)
        np.testing.assert_allclose(numbers["weight"], lam)
        np.testing.assert_allclose(weight["weight"], 1 - lam)
        # Own pixels are the image's; the partner's, in the other order, too.
        other = (images[..., 0] - share * x[..., 0]) / np.maximum(1 - share, 1e-6)
        partner = other[share < 0.999].reshape(7, -1)[:, 0].round().astype(int) - 1
        if name == "mixmask":
            assert (partner[partner] != np.arange(7)).any(), "else any order would do"
        for j, i in enumerate(partner):
            np.testing.assert_array_equal(back[i], images[j])


def test_mixtures_of_both_branches_have_no_second_term():
    panels, _ = shown("unmix", 4, "branches=both")
    assert list(panels) == ["input", "unmix", "unmix: own share"]
    assert (panels["unmix"][1]["weight"] == 1).all()


def test_erased_images_have_their_own_weights():
    panels, _ = shown("erase", 4)
    first, second = panels["erase_1"][1], panels["erase_2"][1]
    np.testing.assert_allclose(first["weight"] + second["weight"], 1, atol=1e-6)
    assert not any("reverse" in name for name in panels)


@pytest.mark.parametrize("count, groups", [(8, 4), (2, 1), (6, 3), (7, 1), (1, 1)])
def test_no_picture_is_its_own_partner_for_want_of_pictures(count, groups):
    sections = {"a": {"name": "unmix", "groups": 8}, "b": {"name": "other"}}
    found = siamese.regrouped(sections, count)
    assert found == {"a": {"name": "unmix", "groups": groups}, "b": {"name": "other"}}
    assert siamese.regrouped({"a": {"groups": 2}}, 8) == {"a": {"groups": 2}}


def test_shares_are_greys_and_numbers_stand_below():
    view = type("View", (), {"mean": (0.5,), "std": (0.25,)})
    share = np.array([0, 0.5, 1, 2], np.float32).reshape(1, 2, 2)
    panels = {"a": np.zeros((1, 2, 2, 1)), "b": (share, {"lam": [0.12345]})}
    found = pictures.columns(panels, view)
    assert (found["a"] == 128).all()
    grey = [[0, pictures.LIGHT // 2], [pictures.LIGHT] * 2]
    np.testing.assert_array_equal(found["b"][0], np.stack([grey] * 3, axis=-1))
    assert pictures.notes(panels) == {"b": [["lam 0.123"]]}
    plain, noted = pictures.sheet(found), pictures.page(panels, view)
    assert noted.height == plain.height + pictures.LINE
    assert noted.width == plain.width
    below = np.asarray(noted)[plain.height - pictures.GAP :]
    left, right = below[:, : plain.width // 2], below[:, plain.width // 2 :]
    assert (left == 255).all() and (right < 128).any()


def test_columns_keep_the_order_of_show(mesh):
    """jit would bring a dict back sorted."""
    data = type("Data", (), {})()
    data.augment = lambda batch, resident, key: batch
    data.source = type("Source", (), {"size": 8})
    data.resident, data.sweep = {}, lambda: iter_closing(np.zeros((8, 2)))
    sets = type("Sets", (), {"test": lambda self, n: data})()
    show = lambda state, batch, rng: {k: batch["x"] for k in ("z", "input", "a")}
    found = pictures.painter(show, 3, sets, mesh)({})
    assert list(found) == ["z", "input", "a"] and found["z"].shape == (3, 2)


def iter_closing(x):
    yield {"x": x}


# --- maps ----------------------------------------------------------------------------


def test_energy_of_a_map():
    """The mean of squares, so signs do not cancel; between centres it is linear."""
    x = np.zeros((1, 2, 2, 2), np.float32)
    x[0, 0, 1] = [3, -3]
    found = np.asarray(jax.jit(lambda x: activation.energy(x, 4, 4))(x))[0]
    line = np.array([0, 0.25, 0.75, 1])
    np.testing.assert_allclose(found, 9 * np.outer(1 - line, line), atol=1e-5)


def test_activation_needs_a_map():
    network = type("N", (), {"encode": lambda *how: {"features": None}})
    with pytest.raises(UsageError, match="no map of its last layer"):
        state = type("S", (), {"params": {}, "stats": {}})
        activation.shower(network)(state, {"views": (None,)}, None)


# --- t-SNE ---------------------------------------------------------------------------


def test_tsne_keeps_classes_together_and_comes_out_the_same():
    labels = np.arange(60) % 3
    x = np.eye(3, 8)[labels] + 0.05 * RNG.normal(size=(60, 8))
    first, again = (
        embedding.flatten(x * scale, perplexity=10.0, seed=0) for scale in (1, 1)
    )
    np.testing.assert_array_equal(first, again)
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).all()


def test_points_are_where_they_should_be_in_their_colours():
    places = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]])
    page = embedding.plot(places, np.array([0, 1, 1]), 2)
    side, edge = embedding.SIDE, embedding.DOT
    assert tuple(page[edge, edge]) == embedding.colour(0, 2)
    assert tuple(page[edge, side - 1 - edge]) == embedding.colour(1, 2)
    assert tuple(page[side // 2, edge]) == embedding.colour(1, 2)
    colours = {embedding.colour(k, 20) for k in range(20)}
    assert len(colours) == 20
    without = embedding.plot(places, np.full(3, -1), 0)
    assert tuple(without[edge, edge]) == embedding.colour(-1, 0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'scikit-learn"):
        embedding.check_installed()


def test_more_perplexity_than_points():
    data = type("Data", (), {"source": type("Source", (), {"size": 20})})
    sets = type("Sets", (), {"test": lambda self, n: data})()
    how = dict(seed=0, sets=sets, method=None, mesh=None, check=None, workdir=None)
    with pytest.raises(UsageError, match=r"perplexity=30.0 .* below the 20 points"):
        embedding.make(points=0, perplexity=30.0, **how)


# --- histograms ----------------------------------------------------------------------


def test_histograms_are_those_of_numpy(mesh):
    weights = RNG.normal(size=(8, 5, 3)).astype(np.float32)
    params = {"encoder": {"w": weights, "one": np.ones((4,), np.float32)}}
    split = jax.device_put(params["encoder"]["w"], meshes.batched(mesh))
    placed = {"encoder": params["encoder"] | {"w": split}}
    found = jax.device_get(histograms.counter(7, mesh)(placed))
    shape = found["encoder/w"]
    wanted, edges = np.histogram(weights, 7)
    np.testing.assert_array_equal(shape["bucket"], wanted)
    np.testing.assert_allclose(shape["bucket_limit"], edges[1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shape["sum"], weights.sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        shape["sum_squares"], np.square(weights).sum(), rtol=1e-5
    )
    assert (shape["min"], shape["max"]) == (weights.min(), weights.max())
    same = found["encoder/one"]
    assert same["bucket"].tolist() == [4, 0, 0, 0, 0, 0, 0] and same["min"] == 1


def test_bars():
    page = histograms.plot(np.array([0, 1, 2, 4]))
    dark = (page == histograms.INK).all(axis=-1)
    heights = dark.sum(axis=0)[[0, 30, 50, 95]]
    assert heights.tolist() == [0, 24, 48, 96]
    assert dark[-1, 30] and not dark[0, 30], "bars stand on the ground"


def test_histograms_reach_tensorboard_and_the_disk(mesh, tmp_path):
    writer = Writer(tmp_path, length=0, step=0)
    params = {"head": {f"w{i}": jnp.arange(4.0) for i in range(9)}}
    run = histograms.make(bins=4, mesh=mesh, workdir=tmp_path)
    assert run(type("S", (), {"params": params}), 5, writer) == {}
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Tags()["histograms"]) == 9
    (event,) = events.Histograms("weights/head/w3")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num) == (5, 0, 3, 4)
    assert (value.sum, value.sum_squares) == (6, 14)
    assert list(value.bucket) == [1, 1, 1, 1]
    page = opened(tmp_path / "figures" / "histograms_0000005.png")
    assert page.shape[0] > 2 * histograms.SIDES[0], "nine tensors, two rows"
    with pytest.raises(UsageError, match="histograms.bins=0"):
        histograms.make(bins=0, mesh=mesh, workdir=tmp_path)


# --- a whole run ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moco")
    settings = tiny.siamese("moco", "both", steps=2)
    del settings.evals.knn
    for section in settings.evals.values():
        section.every_epochs = 0.0  # only at the end
    settings.evals.health.examples = 50
    settings.evals.embedding = common.embedding(every_epochs=0.0)
    settings.evals.embedding.points, settings.evals.embedding.perplexity = 40, 8.0
    return tiny.run(folder, settings)


def test_a_siamese_run_is_seen_while_it_trains(trained):
    drawn = {p.name.split("_")[0] for p in (trained / "figures").glob("*.png")}
    assert drawn >= {"pictures", "activation", "histograms", "embedding"}
    for name in drawn:
        (path,) = (trained / "figures").glob(f"{name}_*2.png")
        assert opened(path).std() > 10
    for name in ("feature_std", "mean_cosine", "effective_rank"):
        assert np.isfinite(tiny.metrics(trained, f"health/{name}")[2])
    assert tiny.metrics(trained, "train/queue_age")[1] == 0
    assert tiny.metrics(trained, "health/examples")[2] == 50


def test_look_at_a_siamese_run(trained, capsys):
    flags = [f"--workdir={trained}", "--count=4"]
    more = [f"--beside={trained}", "--points=30"]
    assert look.run([*flags, *more]) == 0
    paths = capsys.readouterr().out.split()
    names = [p.rsplit("/", 1)[1] for p in paths]
    assert names == ["pictures.png", "activation.png", "embedding.png"]
    two = [opened(path) for path in paths]
    assert look.run([*flags, f"--out={trained}/alone"]) == 0
    alone = opened(trained / "alone" / "activation.png")
    assert alone.shape[1] < two[1].shape[1]
    assert not (trained / "alone" / "embedding.png").exists()
    assert look.run([*flags, "--points=few"]) == 2
    assert "--points=few is not a number of points" in capsys.readouterr().err


def test_every_section_fits_its_evaluator():
    for make in (common.health, common.histograms, common.activation, common.embedding):
        section = dict(make(every_epochs=1.0), size=3)
        context = dict.fromkeys(("sets", "method", "mesh", "check", "network"))
        with pytest.raises(UsageError, match=r"evals\.x\.size is not a field"):
            evals.make({"x": section}, clock=Clock(9, 9), workdir=None, **context)
