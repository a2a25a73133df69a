"""Every system of segmentation and detection: it learns, compiles once, continues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.detection import detector
from mixjax.methods import detect
from mixjax.profiling import collectives
from mixjax.sharding import meshes
from tests.support import tiny
from tests.support.tiny_dense import SYSTEMS, built, small, step_of

STEPS = 8
AGREE = ("uper", "vitdet", "c4")  # of eight devices with one


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


@pytest.mark.parametrize("name", sorted(SYSTEMS.keys() - {"cascade_d2"}))
def test_it_learns_in_one_program(name):
    """One, whatever the number of objects; no map, box or score leaves its device."""
    config, method, batch, state = built(name)
    mesh, step = meshes.make(fsdp=1), step_of(config, method, state)
    cut, everywhere = meshes.batched(mesh), meshes.replicated(mesh)
    how = {"in_shardings": (everywhere, cut), "out_shardings": everywhere}
    run = jax.jit(step, **how).lower(state, batch).compile()
    assert {c.kind for c in collectives.parse(run.as_text())} <= {"all-reduce"}
    now, whole = jax.device_put(state, everywhere), jax.device_put(batch, cut)
    losses = []
    for _ in range(STEPS):
        now, metrics = run(now, whole)
        losses.append(float(metrics["loss"]))
    less = jax.device_put(without_objects(batch), cut)
    assert np.isfinite([*losses, float(run(now, less)[1]["loss"])]).all()
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    for leaf in jax.tree.leaves(now.params):
        assert np.isfinite(np.asarray(leaf)).all()
    if name in AGREE:
        np.testing.assert_allclose(on_one(step, state, batch), losses[:3], rtol=1e-4)


def on_one(step, state, batch):
    """The losses of three steps on one device."""
    run, losses = jax.jit(step), []
    for _ in range(3):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def test_later_stages_of_a_cascade():
    """mmdet's draw anew, detectron2's take all regions of the first and no object."""
    for name, count in (("cascade", 16), ("cascade_d2", 20)):
        config, method, batch, state = built(name)
        d = detector.Detector(None, detect.config.read(**sections(config)), "seen")
        boxes = jnp.tile(batch["targets"]["boxes"][:, :1], (1, 20, 1))
        valid = jnp.ones((8, 20), bool)
        from_truth = jnp.broadcast_to(jnp.arange(20)[None] < 3, (8, 20))
        key = jax.random.key(0)
        found = detect.choose_regions(d, 1, boxes, valid, from_truth, batch, key)
        assert found.boxes.shape == (8, count, 4)
        if name == "cascade":
            # 17 boxes of the stage before, and the objects again.
            assert found.from_truth.sum() > 0 and found.positive.any(axis=1).all()
            assert found.positive.sum(axis=1).max() <= 4
        else:
            np.testing.assert_array_equal(found.from_truth, from_truth)
            assert found.positive.all()


def sections(config):
    names = ("anchors", "rpn", "boxes", "masks", "test")
    return {name: config.method[name] for name in names}


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_shown(name):
    """Pictures of one size for every column."""
    _, method, batch, state = built(name)
    found = jax.eval_shape(method.show, state, batch, jax.random.key(0))
    assert list(found) == ["input", "prediction", "truth"]
    assert {x.shape for x in found.values()} == {(8, 64, 64, 3)}


def test_kill_and_resume_is_bit_equal(tmp_path):
    """Batch statistics, and the draws of anchors and regions, continue."""
    config = small("c4_voc")
    del config.evals.detect, config.evals.pictures
    whole = tiny.run(tmp_path / "whole", config)
    tiny.run(tmp_path / "parts", config, tiny.StopAt(4))
    parts = tiny.run(tmp_path / "parts", config)
    tiny.assert_same_run(whole, parts, 6)
