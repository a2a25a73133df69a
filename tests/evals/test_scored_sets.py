"""Sets in their official folders, made here and scored by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from mixjax import data
from mixjax.config import recipes
from mixjax.data import voc
from mixjax.errors import UsageError
from mixjax.evals import classify, imagenet_a, imagenet_c
from mixjax.sharding import meshes
from mixjax.state import Geometry, TrainState
from tests.support import tiny

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
    with pytest.raises(UsageError, match="has 200 classes and .* has 3; they must be"):
        imagenet_a.make(
            folder=str(tmp_path / "imagenet-a"),
            view="decode",
            sets=sets(tmp_path, 3, mesh),
            network=network(3, answer),
            mesh=mesh,
            check=lambda: None,
        )


def scored(source, split, classes, answer, tmp_path, devices):
    """What the classifier's evaluator says of a split of `source`, held out."""
    mesh = some_devices(devices)
    c = recipes.load(f"{tiny.ROOT}/configs/quickstart.py").data
    c.source, c.split, c.eval_split = source, split, "test"
    view = "decode_center(8, resize_to=8)"
    c.views, c.eval_view, c.on_device, c.eval_batch = (view,), view, False, 8
    found = data.make(c, batch=1, seed=0, mesh=mesh)
    how = dict(sets=found, network=network(classes, answer), mesh=mesh)
    run = classify.make(protocol="p", examples=0, check=lambda: None, **how)
    return run(STATE, 0, None)


@pytest.mark.parametrize("devices", [1, 8])
def test_aircraft_mean_per_class(tmp_path, devices):
    """Of two 707 one is right, of one DC-9 none, of one F/A-18 all."""
    home = tmp_path / "fgvc-aircraft-2013b" / "data"
    names = ["707-320", "DC-9-30", "F/A-18"]
    shown = [("707-320", 0), ("707-320", 1), ("DC-9-30", 0), ("F/A-18", 2)]
    for number, (_, level) in enumerate(shown):
        picture(home / "images" / f"{number:07}.jpg", level)
    lines = "".join(f"{i:07} {name}\n" for i, (name, _) in enumerate(shown))
    (home / "variants.txt").write_text("\n".join(names) + "\n")
    for split in ("train", "val", "trainval", "test"):
        (home / f"images_variant_{split}.txt").write_text(lines)
    answer = lambda level: jnp.eye(3)[level]
    found = scored(f"folder:{tmp_path}", "trainval", 3, answer, tmp_path, devices)
    assert found["p/mean_per_class"] == pytest.approx(50)
    assert found["p/top1"] == 50 and found["p/examples"] == 4


@pytest.mark.parametrize("devices", [1, 8])
def test_voc_average_precision(tmp_path, devices):
    """Aeroplanes: hit, miss, hit. Cats: miss, (difficult), hit. Other classes: none."""
    home = tmp_path / "VOCdevkit" / "VOC2007"
    for number in range(4):
        picture(home / "JPEGImages" / f"{number:06}.jpg", number)
    (home / "ImageSets" / "Main").mkdir(parents=True)
    labels = {"aeroplane": (1, -1, 1, -1), "cat": (-1, 0, 1, -1)}
    for name in voc.CLASSES:
        values = labels.get(name, (-1,) * 4)
        lines = "".join(f"{i:06} {value:2d}\n" for i, value in enumerate(values))
        for split in ("trainval", "test"):
            (home / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text(lines)
    values = np.zeros((4, 20), np.float32)
    values[:, voc.CLASSES.index("aeroplane")] = (4, 3, 2, 1)
    values[:, voc.CLASSES.index("cat")] = (4, 3, 2, 1)
    answer = lambda level: jnp.asarray(values)[level]
    found = scored(f"folder:{tmp_path}", "trainval", 20, answer, tmp_path, devices)
    aeroplane = (6 * 1 + 5 * 2 / 3) / 11
    cat = 1 / 2
    assert found == {
        "p/map": pytest.approx(100 * (aeroplane + cat) / 2),
        "p/examples": 4,
    }
