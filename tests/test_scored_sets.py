"""ImageNet-A and -C in their official folders, made here and scored by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from mixjax import data, meshes, recipes
from mixjax.errors import UsageError
from mixjax.evals import imagenet_a, imagenet_c
from mixjax.state import Geometry, TrainState
from tests import tiny

STATE = TrainState(jnp.int32(0), {}, {}, {}, {}, {})
NAMES = ("n01440764", "n01443537", "n01484850")


def network(classes, answer):
    """Reads from the corner pixel what to say: `answer` maps it to logits."""

    def apply(params, stats, images, *, train):
        assert not train
        level = jnp.round(images[:, 0, 0, 0] * 255 / 20).astype(jnp.int32)
        return {"logits": answer(level)[:, :classes]}, stats

    return SimpleNamespace(apply=apply, geometry=Geometry((8, 8), 3, 4, (2, 2), False))


def some_devices(count):
    """A mesh of the first so many."""
    axes = (AxisType.Auto,) * 2
    devices = jax.devices()[:count]
    return jax.make_mesh((count, 1), meshes.BATCH, axis_types=axes, devices=devices)


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 20 * level, np.uint8)).save(path)


def sets(tmp_path, classes, mesh):
    """The data of a run with so many classes; only their number matters here."""
    np.savez(
        tmp_path / "run.npz",
        train_image=np.zeros((8 * (-(-classes // 8)), 8, 8, 3), np.uint8),
        train_label=np.arange(8 * (-(-classes // 8))) % classes,
    )
    c = recipes.load(f"{tiny.ROOT}/configs/quickstart.py").data
    c.source, c.views, c.eval_view = f"npz:{tmp_path}/run.npz", ("decode",), "decode"
    c.on_device, c.eval_batch = False, 16
    return data.make(c, batch=8, seed=0, mesh=mesh)


CORRUPTED = {("fog", 2): 1, ("snow", 5): 3}  # wrong answers among three pictures


def make_c(root):
    """Three classes, a picture each; the level of its pixels is what is answered."""
    for name in imagenet_c.ALEXNET:
        for severity in imagenet_c.SEVERITIES:
            wrong = CORRUPTED.get((name, severity), 0)
            for number, folder in enumerate(NAMES):
                level = (number + 1) % 3 if number < wrong else number
                picture(root / name / str(severity) / folder / "a.png", level)
    return root


@pytest.mark.parametrize("devices", [1, 8])
def test_imagenet_c(tmp_path, devices):
    """One third of fog's severity 2 and all of snow's 5 are wrong; nothing else."""
    mesh = some_devices(devices)
    net = network(3, lambda level: jnp.eye(3)[level])
    root = make_c(tmp_path / "ImageNet-C")
    run = imagenet_c.make(
        folder=str(root),
        view="decode",
        sets=sets(tmp_path, 3, mesh),
        network=net,
        mesh=mesh,
        check=lambda: None,
    )
    found = run(STATE, 0, None)
    fog, snow = 100 / 3 / 5, 100 / 5
    assert found["robust/imagenet_c/fog"] == pytest.approx(fog)
    assert found["robust/imagenet_c/snow"] == pytest.approx(snow)
    want = (fog / imagenet_c.ALEXNET["fog"] + snow / imagenet_c.ALEXNET["snow"]) / 15
    assert found["robust/imagenet_c/mce"] == pytest.approx(want)
    assert found["robust/imagenet_c/error"] == pytest.approx((fog + snow) / 15)
    assert found["robust/imagenet_c/examples"] == 15 * 5 * 3


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: rename(root / "fog"), "no such|fog"),
        (lambda root: rename(root / "snow" / "3" / NAMES[0]), "snow/3 has 2 classes"),
    ],
)
def test_imagenet_c_that_is_not_whole(tmp_path, spoil, message):
    mesh = meshes.make(fsdp=1)
    root = make_c(tmp_path / "ImageNet-C")
    spoil(root)
    how = dict(sets=sets(tmp_path, 3, mesh), mesh=mesh, check=lambda: None)
    how |= dict(network=network(3, lambda level: jnp.eye(3)[level]), view="decode")
    with pytest.raises(UsageError, match=message):
        imagenet_c.make(folder=str(root), **how)


def rename(path):
    path.rename(path.with_name(f".{path.name}"))


def test_imagenet_a(tmp_path):
    """200 classes: the best of all 1000 logits is always none of them."""
    mesh = meshes.make(fsdp=1)
    names = [f"n{number:08d}" for number in range(200)]
    right = {0: 0, 57: 1, 199: 2}  # class folder -> level of its picture
    for number, name in enumerate(names):
        picture(tmp_path / "imagenet-a" / name / "a.png", right.get(number, 3))
    outside = next(c for c in range(1000) if c not in imagenet_a.CLASSES)
    places = [imagenet_a.CLASSES[number] for number in right] + [outside]

    def answer(level):
        logits = 2.0 * jax.nn.one_hot(outside, 1000) + 0 * level[:, None]
        return logits + jax.nn.one_hot(jnp.array(places)[level], 1000)

    run = imagenet_a.make(
        folder=str(tmp_path / "imagenet-a"),
        view="decode",
        sets=sets(tmp_path, 1000, mesh),
        network=network(1000, answer),
        mesh=mesh,
        check=lambda: None,
    )
    found = run(STATE, 0, None)
    # Pictures of level 3 are taken for the first of the 200, which is wrong but once,
    # and that one has a level of its own.
    assert found == {
        "robust/imagenet_a/top1": pytest.approx(100 * 3 / 200),
        "robust/imagenet_a/examples": 200,
    }
    with pytest.raises(UsageError, match="has 200 classes and .* 3; they must be"):
        imagenet_a.make(
            folder=str(tmp_path / "imagenet-a"),
            view="decode",
            sets=sets(tmp_path, 3, mesh),
            network=network(3, answer),
            mesh=mesh,
            check=lambda: None,
        )
