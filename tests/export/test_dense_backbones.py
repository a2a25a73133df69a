"""What goes out for other people's detectors is what our own begin from.

An encoder, written as a file or as it lies in its run, as the backbone of a detector:
the same features. The fourth stage of a residual network is there a part of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mixjax import models
from mixjax.errors import UsageError
from mixjax.export import __main__ as export
from mixjax.export import weights as store
from mixjax.models import adapt_weights
from mixjax.sharding import meshes
from mixjax.state import TrainState
from mixjax.training import warm_start
from tests.support import random_checkpoints

ENCODER = random_checkpoints.RESNET | {"image_size": (64, 96)}
WHOLE = {"norm": random_checkpoints.NORM, "encoder": ENCODER}
HOW = {"block": "bottleneck", "layers": 1, "width": 16, "remat": "none"}
CROPS = {"regions": jax.ShapeDtypeStruct((1, 4, 4, 32), jnp.float32)}
CROPS |= {"valid": jax.ShapeDtypeStruct((1,), bool)}
IMAGES = np.random.default_rng(3).normal(size=(2, 64, 96, 3)).astype("f4")


def form_c4(extra_norm, **changes):
    """config.model of a detector whose backbone ends after the third stage."""
    encoder = ENCODER | {"layers": (1, 2, 1), "widths": (4, 8, 8)}
    res5 = HOW | {"extra_norm": extra_norm} | changes
    return {"precision": "float32", "norm": random_checkpoints.NORM} | {
        "encoder": encoder,
        "res5": res5,
    }


def borrowed(path, model, **inputs):
    """(network, parameters, statistics) of `model` as far as they are in `path`."""
    network = models.make(model)
    image = jax.ShapeDtypeStruct((1, *model["encoder"]["image_size"], 3), jnp.float32)
    params, stats = jax.eval_shape(network.init, jax.random.key(0), image, **inputs)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, {}, stats, {}, {})
    layout = meshes.lay_out(meshes.make(fsdp=1), state, ())
    config = ConfigDict({"init_from": str(path), "model": model})
    given = jax.device_get(warm_start.warm_start(config, layout)[0])
    return network, given["params"], given["stats"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = WHOLE | {"classifier": random_checkpoints.CLASSIFIER}
    return random_checkpoints.save(tmp_path_factory.mktemp("resnet") / "run", model)


@pytest.fixture(params=["workdir", "detectron2", "torchvision"])
def source(request, run, tmp_path):
    """The run itself, or a file of its encoder."""
    if request.param == "workdir":
        return run
    kind = {"detectron2": "pkl", "torchvision": "safetensors"}[request.param]
    out = tmp_path / f"model.{kind}"
    flags = [f"--workdir={run}", f"--to={request.param}", f"--out={out}"]
    assert export.run(flags) == 0
    return out


def maps_of(run):
    """(map after the third stage, after the fourth) of the network that went out."""
    weights = store.load(str(run), "encoder", False, False)
    network, _ = store.network_of(weights.model)
    params, stats = store.trees(weights.arrays)
    run = lambda x: network.encode(params, stats, x, stages=True)["stages"]
    return jax.jit(run)(IMAGES)[2:]


def test_a_detector_of_form_c4_has_the_same_backbone(source, run):
    """Third stage and res5, run on all of the map as if it were one region."""
    network, params, stats = borrowed(source, form_c4(False), res5=CROPS)
    assert params.keys() == stats.keys() == {"encoder", "res5"}
    third, fourth = maps_of(run)

    @jax.jit
    def detector(images):
        seen = network.encode(params, stats, images)["map"]
        given = {"regions": seen, "valid": jnp.ones(len(seen), bool)}
        how = {"train": False, "res5": given}
        return seen, network.run(params, stats, {}, ("res5",), **how)[0]["regions"]

    for found, want in zip(detector(IMAGES), (third, fourth), strict=True):
        assert np.abs(want).max() > 0.5
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_the_norm_behind_res5_starts_afresh(source, run):
    """And nothing else does; statistics come with the weights."""
    _, params, stats = borrowed(source, form_c4(True), res5=CROPS)
    last = stats["res5"]["batch_stats"]
    assert params["res5"].keys() == last.keys() == {"layer4_0"}
    old = store.load(str(run), "encoder", False, False).arrays
    for name in ("mean", "var"):
        want = old[f"encoder/layer4_0/bn2/{name}"]
        np.testing.assert_array_equal(last["layer4_0"]["bn2"][name], want)
        assert np.abs(want).max() > 0
    want = old["encoder/layer4_0/conv3/kernel"]
    np.testing.assert_array_equal(params["res5"]["layer4_0"]["conv3"]["kernel"], want)
    want = old["encoder/layer3_0/bn1/mean"]
    first = stats["encoder"]["batch_stats"]["layer3_0"]["bn1"]["mean"]
    np.testing.assert_array_equal(first, want)


def test_stages_of_other_shapes_are_refused(run):
    with pytest.raises(UsageError, match=r"res5: .*layer4_0/.* instead of"):
        borrowed(run, form_c4(False, width=12), res5=CROPS)
    with pytest.raises(UsageError, match=r"res5: .*layer4_1/.* missing"):
        borrowed(run, form_c4(False, layers=2), res5=CROPS)


def test_a_network_without_res5_leaves_no_stage_behind(run):
    model = form_c4(False)
    del model["res5"]
    with pytest.raises(UsageError, match=r"encoder: .*layer4_0/.* too many"):
        borrowed(run, model)


def test_a_detector_begins_from_another_detector(tmp_path):
    """Its res5 is a part already, with the norm behind it."""
    arrays = {"encoder": {"layer1_0/x": 1}, "res5": {"layer4_0/x": 2, "norm/scale": 3}}
    assert adapt_weights.cut_res5(arrays, list(arrays), form_c4(True)) == arrays
    wanted, model = dict(arrays["res5"]), {"encoder": ENCODER}
    adapted = adapt_weights.adapt_part("res5", arrays["res5"], wanted, model, model)
    assert adapted == (arrays["res5"], set())


# --- vision transformers -----------------------------------------------------------

VIT = random_checkpoints.VIT | {
    "image_size": (32, 48),
    "pool": "mean",
    "position": "learned",
}
DENSE = dict(name="vit_dense", relative="none", window=0, global_blocks=())
DENSE |= dict(class_token=True, pretrained_grid=(8, 12), layer_scale=False, taps=(0, 1))
DENSE |= {k: v for k, v in VIT.items() if k not in ("name", "pool", "position", "scan")}


@pytest.mark.parametrize("to", ["workdir", "timm", "mae"])
def test_a_dense_transformer_has_the_same_backbone(tmp_path, to):
    """The map of the last block, normed as the network that went out does."""
    source = run = random_checkpoints.save(tmp_path / "run", {"encoder": VIT})
    if to != "workdir":
        source = tmp_path / "model.safetensors"
        assert export.run([f"--workdir={run}", f"--to={to}", f"--out={source}"]) == 0
    model = {"precision": "float32", "encoder": DENSE}
    network, params, stats = borrowed(source, model)
    images = IMAGES[:, :32, :48]
    found = jax.jit(lambda x: network.encode(params, stats, x)["map"])(images)
    weights = store.load(str(run), "encoder", False, None)
    old, _ = store.network_of(weights.model)
    theirs, _ = store.trees(weights.arrays)
    want = jax.jit(lambda x: old.encode(theirs, {}, x)["tokens"])(images)
    x = np.asarray(found, np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6)
    norm = theirs["encoder"]["norm"]
    x = (x * norm["scale"] + norm["bias"]).reshape(2, -1, VIT["width"])
    np.testing.assert_allclose(x, want[:, -x.shape[1] :], atol=1e-4)
