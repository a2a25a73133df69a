"""Every system of segmentation and detection: it learns, compiles once, continues."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import dense_sets, small_dense
from mixjax import begin, data, meshes, methods, models, optim, recipes, steps
from mixjax.schedules import Clock
from tests import tiny

CLOCK = Clock(100, 100)
COCO, VOC = ("coco:{}/coco", "train"), ("voc_objects:{}/VOCdevkit", "trainval2007")
SYSTEMS = {
    "uper": ("ade20k_uper_vitb:bias=1", ("ade20k:{}/ade", "train")),
    "vitdet": ("coco_vitdet_vitb", COCO),
    "cascade": ("coco_cascade_vitl", COCO),
    "cascade_d2": ("coco_cascade_vitl:form=detectron2", COCO),
    "c4": ("coco_c4_r50", COCO),
    "c4_voc": ("voc_c4_r50", VOC),
}
CLASSES = {"uper": 150, "c4_voc": 20}
HALF = {"model.encoder.depth": 2, "model.encoder.width": 32, "optim.layers": (2,)}


@functools.cache
def pictures() -> Path:
    return dense_sets.save(Path(tempfile.mkdtemp()))


def small(name, **changes):
    """The recipe of a system, tiny, on eight pictures of 64."""
    text, (source, split) = SYSTEMS[name]
    file, _, argument = text.partition(":")
    c = recipes.load(f"{tiny.ROOT}/configs/{file}.py:{argument}")
    source = source.format(pictures())
    fields = small_dense.fields(c, source, split, 64, CLASSES.get(name, 3)) | {
        "batch": 8
    }
    if c.model.encoder.name == "vit_dense":
        taps = (0, 0, 1, 1)
        fields |= HALF | {"model.encoder.global_blocks": (1,)}
        fields["model.encoder.taps"] = taps
    fields |= small_dense.length(6, 1e-3) | {"checkpoint.every_epochs": 1e9}
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    known = recipes.flat(c.to_dict())
    c.update_from_flattened_dict({k: v for k, v in fields.items() if k in known})
    return c


@functools.cache
def built(name):
    """(config, method, a batch as it comes from the pictures, state)."""
    config = small(name)
    sets = data.make(config.data, batch=8, seed=0, mesh=meshes.make(fsdp=1))
    batches = sets.train.batches(0, 1)
    batch = jax.device_get(next(batches))
    batches.close()
    augment = jax.jit(sets.train.augment, static_argnums=())
    batch = jax.device_get(augment(batch, {}, jax.random.key(0)))
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    params = jax.eval_shape(method.init, jax.random.key(0), batch).params
    optimizer = optim.make(config.optim, lambda step: 0.0, params, clock=CLOCK)
    state = jax.jit(begin.make_init(method, optimizer, batch))(jax.random.key(0))
    return config, method, batch, state


def without_objects(batch):
    """The batch, but the first two pictures show nothing and the third less."""
    targets = dict(batch["targets"])
    if "present" in targets:
        present = targets["present"].copy()
        present[:2], present[2, 1:] = False, False
        targets["present"] = present
    else:
        targets["map"] = targets["map"].copy()
        targets["map"][:2] = 255
    return {**batch, "targets": targets}


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_learns_and_compiles_once(name):
    """Whatever the number of objects; none at all is no trouble."""
    config, method, batch, state = built(name)
    rate = lambda step: jnp.float32(1e-3)
    optimizer = optim.make(config.optim, rate, state.params, clock=CLOCK)
    same = lambda batch, resident, rng: batch
    step = steps.make_step(method, optimizer, rate, same, config)
    traced = []

    @jax.jit
    def counted(state, batch):
        traced.append(1)
        return step(state, batch, {})

    losses = []
    for i in range(14):
        now, metrics = counted(state, without_objects(batch) if i == 6 else batch)
        assert np.isfinite(float(metrics["loss"])), i
        if i != 6:
            state = now
            losses.append(float(metrics["loss"]))
    assert len(traced) == 1
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all()


def loss_and_gradient(method, state, batch):
    both = jax.value_and_grad(method.loss, has_aux=True)
    (loss, aux), grads = both(state.params, state, batch, jax.random.key(3))
    return loss, aux, grads


@pytest.mark.parametrize("name", ["uper", "vitdet", "c4"])
def test_eight_devices_agree_with_one(name):
    _, method, batch, state = built(name)
    run = functools.partial(loss_and_gradient, method)
    alone = jax.jit(run)(state, batch)
    mesh = meshes.make(fsdp=1)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    shardings = {"in_shardings": (everywhere, cut), "out_shardings": everywhere}
    spread = jax.jit(run, **shardings)(state, jax.device_put(batch, cut))
    np.testing.assert_allclose(alone[0], spread[0], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * abs(a).max() + 1e-6)


@pytest.mark.parametrize("name", ["vitdet"])
def test_kill_and_resume_is_bit_equal(tmp_path, name):
    config = small(name)
    whole = tiny.run(tmp_path / "whole", config)
    tiny.run(tmp_path / "parts", config, tiny.StopAt(4))
    parts = tiny.run(tmp_path / "parts", config)
    tiny.assert_same_run(whole, parts, 6)
    found = json.loads((whole / "detections/detection_coco_6.json").read_text())
    assert {row["category_id"] for row in found} <= {3, 7, 12}
    assert (whole / "figures/pictures_0000006.png").is_file()
