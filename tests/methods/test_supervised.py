"""Fine-tuning, linear probing, few labels: what learns, what stays, what is counted."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import data, evaluate, methods, mixtures, models
from mixjax.config import recipes, registry
from mixjax.errors import UsageError
from mixjax.evals import classify
from mixjax.methods import supervised
from mixjax.mixtures import mixup_cutmix
from mixjax.objectives import classification
from mixjax.optim import optimizers
from mixjax.optim.schedules import Clock
from mixjax.run.workdir import check_config
from mixjax.sharding import meshes
from mixjax.state import ALL, TrainState
from mixjax.training import initial_state, train_step
from tests.support import tiny

CLOCK = Clock(100, 100)
CASES = [
    ("finetune", "encoder=vit"),
    ("finetune", "encoder=resnet18"),
    ("linear", "encoder=vit"),
    ("linear", "encoder=resnet18"),
]


@functools.cache
def parts(name, variants, rate=1e-2, **changes):
    """(method, state, jitted step that counts its traces, batch, the traces)."""
    config = tiny.supervised(name, variants, **changes)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    several = config.method.loss == "sigmoid"
    labels = jnp.arange(32) % 10
    if several:
        labels = jax.nn.one_hot(labels, 10, dtype=jnp.int32).at[:, 3].set(-1)
    images = jax.random.normal(jax.random.key(1), (32, 16, 16, 1))
    images = images + jnp.linspace(-2, 2, 10)[jnp.arange(32) % 10, None, None, None]
    batch = {"views": (images,), "index": jnp.arange(32), "label": labels}
    params = jax.eval_shape(method.init, jax.random.key(0), batch).params
    schedule = lambda step: jnp.float32(rate)
    optimizer = optimizers.make(config.optim, schedule, params, clock=CLOCK)
    state = jax.jit(initial_state.make_init(method, optimizer, batch))(
        jax.random.key(0)
    )
    traced = []

    @jax.jit
    def step(state, batch):
        traced.append(1)
        same = lambda batch, resident, rng: batch
        run = train_step.make_step(method, optimizer, schedule, same, config)
        return run(state, batch, {})

    return method, state, step, batch, traced


@pytest.mark.parametrize("name, variants", CASES)
def test_it_learns_and_compiles_once(name, variants):
    rate = 0.1 if name == "linear" else 1e-2
    _, state, step, batch, traced = parts(name, variants, rate)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert len(traced) == 1 and np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < np.mean(losses[:4])


@pytest.mark.parametrize("variants", ["encoder=vit", "encoder=resnet18"])
def test_a_frozen_trunk_stays_as_it_is(variants):
    """Weights and batch statistics to the last bit; the classifier moves."""
    _, state, step, batch, _ = parts("linear", variants, 0.1)
    after = state
    for _ in range(3):
        after, _ = step(after, batch)
    for kind in ("params", "stats"):
        old, new = getattr(state, kind), getattr(after, kind)
        jax.tree.map(
            np.testing.assert_array_equal,
            old.get("encoder", {}),
            new.get("encoder", {}),
        )
    head = lambda s: np.asarray(s.params["classifier"]["head"]["kernel"])
    assert np.abs(head(after) - head(state)).max() > 1e-5
    if variants == "encoder=vit":  # the norm of features sees its batches
        mean = after.stats["classifier"]["batch_stats"]["norm"]["mean"]
        assert np.abs(mean).max() > 0


def test_a_frozen_trunk_runs_as_in_evaluation_and_gets_no_gradient():
    method, state, _, batch, _ = parts("linear", "encoder=resnet18", 0.1)
    value = lambda p: method.loss(p, state, batch, jax.random.key(0))[0]
    loss, grads = jax.jit(jax.value_and_grad(value))(state.params)
    assert not any(np.any(g) for g in jax.tree.leaves(grads["encoder"]))
    head = state.params["classifier"]["head"]
    features = jax.jit(method.features)(state, batch["views"][0])
    logits = features @ head["kernel"] + head["bias"]
    target = supervised.soft(batch["label"], 10, 0.0)
    want = classification.soft_cross_entropy(logits, target).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_a_trained_trunk_moves_with_its_statistics():
    _, state, step, batch, _ = parts("finetune", "encoder=resnet18")
    after, _ = step(state, batch)
    for kind in ("params", "stats"):
        moved = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()),
            getattr(state, kind)["encoder"],
            getattr(after, kind)["encoder"],
        )
        assert min(jax.tree.leaves(moved)) > 0


def test_several_labels_per_picture():
    """A class that is not counted has no gradient, the others learn."""
    how = "finetune", "encoder=resnet18,strong=0", 0.05
    method, state, step, batch, _ = parts(*how, method__loss="sigmoid")
    grads = jax.jit(
        jax.grad(lambda p: method.loss(p, state, batch, jax.random.key(0))[0])
    )
    kernel = np.asarray(grads(state.params)["classifier"]["head"]["kernel"])
    assert np.abs(kernel[:, 3]).max() == 0 and np.abs(kernel[:, 4]).max() > 0
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method__trunk": "thawed"}, "method.trunk 'thawed' does not exist"),
        ({"method__loss": "sigmoid"}, "takes images and labels as they are"),
        ({"method__smoothing": 1.5}, "method.smoothing=1.5 must lie in"),
        ({"method__mixture__chunk": 3}, "mixture.chunk=3 must be even"),
        ({"method__mixture__mixup": -1.0}, "mixture.mixup=-1.0"),
        ({"method__mixture__mode": "row"}, "mixture.mode 'row' does not"),
        ({"model__classifier__classes": 0}, "model.classifier.classes=0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(UsageError, match=message):
        parts("finetune", "encoder=resnet18", **changes)


def test_eight_devices_agree_with_one():
    """Chunks of four lie on one device, so nothing of them is sent."""
    method, state, _, batch, _ = parts("finetune", "encoder=resnet18")
    assert method.together == 4

    def run(state, batch):
        value = lambda p: method.loss(p, state, batch, jax.random.key(3))[0]
        return jax.value_and_grad(value)(state.params)

    alone = jax.jit(run)(state, batch)
    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    spread = jax.jit(run, in_shardings=(everywhere, cut), out_shardings=everywhere)
    found = spread(state, jax.device_put(batch, cut))
    np.testing.assert_allclose(alone[0], found[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# --- mixtures with labels ----------------------------------------------------------

HOW = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch": 0.5}


def mixed(count=64, chunk=8, mode="batch", seed=0, **changes):
    mixture = mixup_cutmix.make(**{**HOW, "mode": mode, "chunk": chunk, **changes})
    images = jax.random.uniform(jax.random.key(7), (count, 8, 8, 1))
    (found,) = jax.jit(mixture)(jax.random.key(seed), images, jnp.arange(count))
    return images, (found.images, found.lam, found.mask)


def test_every_pixel_is_a_blend_by_the_mask_and_lam_its_mean():
    images, (new, lam, mask) = mixed()
    other = np.asarray(mixup_cutmix.partners(images, 8))
    want = mask * images + (1 - mask) * other
    np.testing.assert_allclose(new, want, atol=1e-6)
    np.testing.assert_allclose(np.mean(mask, axis=(1, 2, 3)), lam, atol=1e-6)
    by_chunk = np.asarray(lam).reshape(8, 8)
    assert (by_chunk == by_chunk[:, :1]).all() and len(set(by_chunk[:, 0])) > 5
    boxed = [set(np.unique(m)) <= {0.0, 1.0} for m in np.asarray(mask)[::8]]
    assert 0 < sum(boxed) < 8


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_draws_of_pairs_and_pictures(mode):
    _, (_, lam, _) = mixed(mode=mode)
    lam = np.asarray(lam).reshape(8, 8)
    mirrored = (lam == lam[:, ::-1]).all()
    assert mirrored == (mode == "pair")
    assert len(np.unique(lam[:, :4])) > 20


def test_what_is_off_is_off():
    images, (new, lam, _) = mixed(probability=0.0)
    np.testing.assert_array_equal(new, images)
    assert (np.asarray(lam) == 1).all()
    _, (_, _, mask) = mixed(cutmix=0.0)
    assert (np.ptp(np.asarray(mask), axis=(1, 2, 3)) == 0).all()
    _, (_, _, mask) = mixed(mixup=0.0)
    assert set(np.unique(mask)) == {0.0, 1.0}


def test_a_chunk_that_does_not_fit():
    with pytest.raises(UsageError, match="chunk=8 does not divide a batch of 12"):
        mixed(count=12)


def test_a_section_without_a_name_is_mixup_and_cutmix():
    """As earlier runs recorded it, and they open to the same numbers."""
    config = tiny.supervised("finetune", "encoder=resnet18")
    assert config.method.mixture.name == "mixup_cutmix"
    _, _, _, batch, _ = parts("finetune", "encoder=resnet18")
    del config.method.mixture.name
    network = models.make(config.model)
    params, stats = network.init(jax.random.key(0), batch["views"][0])
    state = TrainState(0, params, {}, stats, {}, {})
    values = []
    for section in (config.method, {**config.method, "mixture": MIXUP_CUTMIX}):
        method = methods.make(section, network, clock=CLOCK)
        loss, _ = method.loss(params, state, batch, jax.random.key(0))
        values.append(float(loss))
        assert method.together == 4
    assert values[0] == values[1]


def test_a_run_that_recorded_no_name_goes_on(tmp_path):
    """Its config and the recipe's of today are one; another mixture is another run."""
    settings = tiny.supervised("finetune", "encoder=resnet18").to_dict()
    old = json.loads(json.dumps(settings))
    del old["method"]["mixture"]["name"]
    check_config(old, json.loads(json.dumps(settings)), tmp_path)
    settings["method"]["mixture"]["name"] = "unmix"
    with pytest.raises(UsageError, match="method.mixture.name .'mixup_cutmix'"):
        check_config(old, json.loads(json.dumps(settings)), tmp_path)


MIXUP_CUTMIX = HOW | {"name": "mixup_cutmix", "mode": "batch", "chunk": 4}
COMMON = {"shared": False, "groups": 2}
PAIRED = COMMON | {"permutation": "random"}
MASKS = {"grid": 2, "kind": "discrete", "ratio": 0.5}
ANY = {
    "mixup_cutmix": MIXUP_CUTMIX,
    "unmix": {"probability": 0.5, "gamma": 1.0} | PAIRED,
    "mixmask": MASKS | PAIRED,
    "erase": MASKS | COMMON | {"fill": "zero"},
}


def section(name):
    """The fields above, or of a newer mixture those of its paper."""
    paper = getattr(importlib.import_module(f"mixjax.mixtures.{name}"), "PAPER", {})
    return {"name": name} | ANY.get(name, paper | PAIRED)


@pytest.mark.parametrize("name", registry.names("mixjax.mixtures"))
def test_any_mixture_mixes_images_and_targets_alike(name):
    """Of images that are their own targets, the mixture's mean is the target."""
    mixture = mixtures.make_one("method.mixture", section(name))
    labels = jnp.arange(8)
    images = jnp.broadcast_to(jnp.eye(8)[:, None, None], (8, 6, 6, 8))
    mixed = mixture(jax.random.key(3), images, labels)[0]
    target = supervised.mix_targets(supervised.soft(labels, 8, 0.0), mixed)
    np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
    if mixed.partner is None:  # what is erased has no target
        np.testing.assert_array_equal(target, jnp.eye(8))
    else:
        np.testing.assert_allclose(mixed.images.mean(axis=(1, 2)), target, atol=1e-6)
        assert (np.asarray(target) > 0).sum() > 8


@pytest.mark.parametrize("name", ["unmix", "erase"])
def test_fine_tuning_learns_with_a_mixture_of_pre_training(name):
    config = tiny.supervised("finetune", "encoder=resnet18")
    config.method.mixture = section(name)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    assert method.together == ALL
    _, state, _, batch, _ = parts("finetune", "encoder=resnet18")
    value = lambda p: method.loss(p, state, batch, jax.random.key(0))[0]
    loss, grads = jax.jit(jax.value_and_grad(value))(state.params)
    assert np.isfinite(loss) and all(np.any(g) for g in jax.tree.leaves(grads))
    few = {k: v[:3] if k != "views" else (v[0][:3],) for k, v in batch.items()}
    panels = method.show(state, few, jax.random.key(0))
    assert panels["mixture"].shape == panels["mask"].shape == (3, 16, 16, 1)


# --- whole runs --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pre_trained(tmp_path_factory):
    """A finished MAE run of a few steps, on pictures of 16 pixels."""
    config = tiny.masked("mae", batch=32, steps=4, evals__knn__at_start=False)
    for name in set(config.evals.keys()) - {"knn"}:
        del config.evals[name]
    return tiny.run(tmp_path_factory.mktemp("mae"), config)


@pytest.mark.parametrize(
    "name, variants", [("finetune", "encoder=vit,strong=0"), ("linear", "encoder=vit")]
)
def test_a_run_starts_from_another(pre_trained, tmp_path, name, variants):
    """With a rate of zero the encoder is the one that it was given, positions too."""
    settings = tiny.supervised(name, variants, steps=2, init_from=str(pre_trained))
    settings.schedule.base = 0.0
    folder = tiny.run(tmp_path, settings)
    old, new = tiny.saved_arrays(pre_trained, 4), tiny.saved_arrays(folder, 2)
    names = [k for k in new if k.startswith("['params']['encoder']['blocks")]
    assert len(names) == 24
    for k in names:
        np.testing.assert_array_equal(new[k], old[k], err_msg=k)
    table = new.get("['params']['encoder']['pos_embed']")
    assert (table is not None) == (name == "finetune")
    values = tiny.metrics(folder, f"{name}/examples")
    assert set(values.values()) == {360}
    entries = list((folder / "eval" / name).glob("*.json"))
    assert sorted(int(p.stem) for p in entries) == sorted(values)


def test_another_image_size_is_resampled(pre_trained, tmp_path, said):
    settings = tiny.supervised("finetune", "encoder=vit,strong=0", steps=1)
    settings.init_from, settings.schedule.base = str(pre_trained), 0.0
    settings.model.encoder.image_size = (24, 20)
    view = "decode(channels=1) | resize((24, 20)) | normalize((.3,), (.4,))"
    settings.data.views, settings.data.eval_view = (view,), view
    folder = tiny.run(tmp_path, settings)
    table = tiny.saved_arrays(folder, 1)["['params']['encoder']['pos_embed']"]
    assert table.shape == (1, 1 + 6 * 5, 16)
    from mixjax.models import positions

    old = positions.sincos_2d((4, 4), 16, class_token=True)
    want = positions.resize(jnp.asarray(old), (4, 4), (6, 5))
    np.testing.assert_allclose(table[0], want, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.encoder.depth": 3, "optim.layers": (3,)}, r"blocks_2/.* missing"),
        ({"model.encoder.depth": 1, "optim.layers": (1,)}, r"blocks_1/.* too many"),
        ({"model.encoder.width": 32}, r"\(16,\) float32 instead of \(32,\)"),
        ({"model.classifier.classes": 7}, "classes=7, but data.source has 10 classes"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_keys(
    pre_trained, tmp_path, changes, message
):
    settings = tiny.supervised("finetune", "encoder=vit,strong=0", steps=1)
    settings.init_from = str(pre_trained)
    settings.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=message):
        tiny.run(tmp_path, settings)
    assert not (tmp_path / "checkpoints" / "1").exists()


def test_init_from_what_is_no_run(tmp_path):
    settings = tiny.supervised("finetune", "encoder=vit,strong=0", steps=1)
    settings.init_from = str(tmp_path / "nothing")
    with pytest.raises(UsageError, match="nothing: neither a file nor a run"):
        tiny.run(tmp_path / "run", settings)


def test_evaluate_measures_a_run(pre_trained, capsys):
    """kNN by other settings, and a probe from a file; both go to the ledger."""
    flags = [f"--workdir={pre_trained}", "--config.evals.knn.k=3"]
    assert evaluate.run(flags) == 0
    assert "knn/k=3/top1" in capsys.readouterr().out
    assert (pre_trained / "eval" / "knn-k=3" / "4.json").exists()
    probe = f"--evals={tiny.ROOT}/configs/probe.py:epochs=30"
    assert evaluate.run([flags[0], probe, "--config.evals.probe.batch=64"]) == 0
    out = capsys.readouterr().out
    (line,) = [x for x in out.splitlines() if x.startswith("probe/epochs=30/top1")]
    assert float(line.split()[1]) > 30
    assert "probe/epochs=30/examples" in out and "360" in out


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--workdir is missing"),
        (["--workdir=/nowhere"], "--workdir=/nowhere is not a run"),
        (["--workdir=x", "--eval=y"], "flag 'eval' does not exist; did you mean"),
    ],
)
def test_evaluate_says_what_is_wrong(flags, message, capsys):
    assert evaluate.run(flags) == 2
    assert message in capsys.readouterr().err


@functools.cache
def probe_file():
    return recipes.load(f"{tiny.ROOT}/configs/probe.py").probe


def test_the_rate_of_the_probe():
    """HTDT's factor: 0.981748 from epoch to epoch."""
    c = probe_file()
    factor = (c.last_rate / c.first_rate) ** (1 / c.epochs)
    assert factor == pytest.approx(0.981748, abs=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_each_held_out_picture_counts_once(devices):
    """360 digits in batches of 64 on any number of devices: one number, by hand."""
    axes = (jax.sharding.AxisType.Auto,) * 2
    few = jax.devices()[:devices]
    mesh = jax.make_mesh((devices, 1), meshes.BATCH, axis_types=axes, devices=few)
    config = tiny.supervised("linear", "encoder=vit", model__encoder__depth=1)
    sets = data.make(config.data, batch=32, seed=0, mesh=mesh)
    network = models.make(config.model)
    example = jnp.zeros((1, 16, 16, 1))
    params, stats = network.init(jax.random.key(0), example)
    state = TrainState(jnp.int32(0), params, {}, stats, {}, {})
    how = dict(protocol="linear", examples=0, sets=sets, network=network, mesh=mesh)
    found = classify.make(**how, check=lambda: None)(state, 0, None)
    images, labels = sets.test(0).source.images, sets.test(0).source.labels
    seen = jax.vmap(lambda x: sets.eval_view.device(jax.random.key(0), x))(images)
    logits = classify.predictor(network)(state, seen)
    right = (np.argmax(logits, axis=1) == np.asarray(labels)).sum()
    assert found["linear/examples"] == 360
    assert found["linear/top1"] == pytest.approx(100 * right / 360)
