"""Weights under other projects' names: loaded strictly into torch, and compared."""

import json
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from mixjax.export import __main__ as export
from mixjax.export import check, families, files, formats, hf
from mixjax.export import weights as store
from mixjax.export.check import Difference, Result
from mixjax.models import positions
from mixjax.models.resnet import STEMS
from tests.support import random_checkpoints, tiny

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("tests.support.torch_models")

CASES = [  # run, target, whether with its decoder
    ("mae", "mae", True),
    ("mae", "timm", False),
    ("vit", "timm", False),
    ("vit_mean", "timm", False),
    ("vit_tuned", "timm", False),
    ("vit_probed", "mae", False),
    ("vit_probed", "timm", False),
    ("simmim_vit", "timm", False),
    ("beit", "timm", False),
    ("swin", "timm", False),
    ("resnet", "timm", False),
    ("resnet", "detectron2", False),
    ("small", "torchvision", False),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(name, **how) -> the folder of an untrained run, made once."""
    root = tmp_path_factory.mktemp("runs")

    def get(name, **how):
        folder = root / "-".join([name, *map(str, how.values())]).replace("/", "_")
        if not folder.exists():
            random_checkpoints.save(folder, random_checkpoints.MODELS[name], **how)
        return str(folder)

    return get


def some_images(weights, seed=0):
    encoder = weights.model["encoder"]
    shape = (2, *encoder["image_size"], encoder["channels"])
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference_outputs(weights, to, named, images):
    """What the small torch network makes of the images with tensors as named."""
    model = formats.notes(weights, to)["config"]["model"]
    stem = STEMS.get(model["encoder"].get("stem"))
    net = torch_models.build(to, store.plain(model), stem).eval()
    net.load_state_dict({k: torch.tensor(v) for k, v in named.items()}, strict=True)
    planes = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return {k: v.numpy() for k, v in net.outputs(planes).items()}


def assert_near(weights, theirs, images):
    found = check.compare(check.ours(weights, images), theirs, images.shape[1:3])
    allowed = families.find(weights.model["encoder"]["name"]).tolerance
    assert found and all(d.relative <= allowed for d in found), found


@pytest.mark.parametrize("run, to, decoder", CASES)
def test_every_target_computes_the_same(runs, run, to, decoder):
    weights = store.load(runs(run), "encoder", decoder, None)
    named, images = formats.named(weights, to), some_images(weights)
    assert_near(weights, reference_outputs(weights, to, named, images), images)


@pytest.mark.parametrize(
    "run, flags, name",
    [
        ("vit", ["--head=no", "--image_size=20x32"], "ViTModel"),
        ("vit", [], "ViTForImageClassification"),
        ("simmim_swin", [], "SwinModel"),
        ("simmim_swin", ["--decoder"], "SwinForMaskedImageModeling"),
    ],
)
def test_the_real_classes_of_transformers(runs, tmp_path, run, flags, name):
    """from_pretrained with nothing missing, unexpected or of another shape."""
    pytest.importorskip("transformers")
    from mixjax.export import torch_side

    flags = [f"--workdir={runs(run)}", "--to=hf", f"--out={tmp_path}", *flags]
    assert export.run(flags) == 0
    net = torch_side.transformers(tmp_path).eval()
    assert type(net).__name__ == name
    weights = store.load(runs(run), "encoder", "--decoder" in flags, None)
    if name == "ViTModel":
        weights = store.resized(
            store.load(runs(run), "encoder", False, False), (20, 32)
        )
    images = some_images(weights)
    planes = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = torch_side.hf_outputs(net, planes, name)
    assert_near(weights, {k: v.numpy() for k, v in found.items()}, images)


@pytest.mark.parametrize("run", ["vit", "simmim_vit", "simmim_swin", "resnet"])
def test_other_sizes_of_pictures(runs, run):
    size = {"simmim_swin": (16, 16), "resnet": (29, 31)}.get(run, (28, 20))
    weights = store.resized(store.load(runs(run), "encoder", False, False), size)
    images = some_images(weights)
    assert images.shape[1:3] == size
    if run == "vit":  # its fixed positions are resampled too, not computed anew
        old = positions.sincos_2d((4, 6), 24, True)
        want = np.asarray(positions.resize(old, (4, 6), (7, 5)))
        np.testing.assert_array_equal(weights.arrays["encoder/pos_embed"][0], want)
    named = formats.named(weights, "timm")
    assert_near(weights, reference_outputs(weights, "timm", named, images), images)


@pytest.mark.parametrize("side", range(14, 31))
def test_positions_are_resampled_as_torch_does(side):
    """To an explicit size; a scale factor would round some to one patch too few."""
    encoder = random_checkpoints.VIT | dict(
        image_size=(28, 28), patch=2, width=4, heads=1
    )
    encoder |= dict(depth=1, position="learned", channels=1)
    rng = np.random.default_rng(side)
    model = {"precision": "float32", "encoder": encoder}
    arrays = {k: rng.normal(size=s.shape) for k, s in store.shapes(model).items()}
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    weights = store.Weights(arrays, model, {}, 0, "encoder")
    grid = side, 44 - side
    found = store.resized(weights, (2 * side, 2 * (44 - side)))
    old = arrays["encoder/pos_embed"][0]
    planes = torch.tensor(old[1:].reshape(1, 14, 14, 4)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(planes, size=grid, mode="bicubic")
    want = want.permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    table = found.arrays["encoder/pos_embed"][0]
    np.testing.assert_array_equal(table[0], old[0])
    np.testing.assert_allclose(table[1:], want, atol=1e-5)
    store.check(found, "resized")


# --- the command -----------------------------------------------------------------


def real(shared):
    return f"folder:{shared / 'data' / 'ade20k_sample'}"


@pytest.mark.parametrize(
    "run, flags",
    [
        ("mae", ["--to=hf", "--decoder"]),
        ("resnet", ["--to=detectron2", "--part=teacher"]),
    ],
)
def test_check_runs_real_pictures_through_torch(
    runs, shared, tmp_path, capsys, run, flags
):
    folder = runs(run, source=real(shared), teacher=True)
    out = tmp_path / "deep" / "out"
    flags = [f"--workdir={folder}", f"--out={out}", "--check", *flags]
    assert export.run(flags) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    card = (out / "README.md").read_text()
    values = [float(x) for x in re.findall(r"max (\S+),", said)]
    assert values and card.count("| ") > 5 * len(values)
    assert "license: unknown\n" in card, "the word of Hugging Face for none stated"
    assert "licence of the weights" in card and "commit: " in card
    assert "0.3, 0.4, 0.5" in card and "sha256" in card
    kinds = {"model.safetensors", "README.md"}
    if "--to=hf" in flags:
        kinds |= {"config.json", "preprocessor_config.json"}
    else:
        kinds = {"model.pkl", "README.md"}
    assert {p.name for p in out.iterdir()} == kinds
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_briefly_trained_run(tmp_path, capsys):
    """MAE on grey digits, two steps; the run's own held-out pictures."""
    folder = tiny.run(tmp_path / "run", tiny.masked("mae", steps=2))
    flags = [f"--workdir={folder}", "--to=mae", "--decoder", "--check"]
    assert export.run(flags) == 0, capsys.readouterr().err
    out = folder / "export" / "mae-encoder-decoder"
    assert (out / "model.safetensors").exists()
    assert "commit: not recorded" not in (out / "README.md").read_text()
    named, notes = files.read(out / "model.safetensors", "it")
    assert notes["step"] == 2 and "decoder_pos_embed" in named


def test_no_card_over_tolerance(runs, tmp_path, monkeypatch, capsys):
    found = [Difference("tokens", (16, 16), 3e-4, 1e-5, 2.0)]
    result = Result(found, 1e-5, "somebody", "2", "pictures")
    monkeypatch.setattr(check, "measure", lambda *_: result)
    monkeypatch.setattr(check, "pictures", lambda *_: (None, "pictures"))
    flags = [f"--workdir={runs('mae')}", "--to=mae", f"--out={tmp_path / 'out'}"]
    assert export.run([*flags, "--check"]) == 2
    assert "tokens differ by 0.0003" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wrong_tensor_is_seen(runs):
    """One pair of channels swapped is far beyond what is allowed."""
    weights = store.load(runs("swin"), "encoder", False, None)
    named, images = formats.named(weights, "timm"), some_images(weights)
    name = "layers.1.downsample.norm.weight"
    named[name] = named[name][::-1].copy()
    theirs = reference_outputs(weights, "timm", named, images)
    found = check.compare(check.ours(weights, images), theirs, (32, 32))
    assert max(d.relative for d in found) > 1e-3


BLOCKED = """
import sys
for name in ("torch", "tensorflow", "transformers", "timm", "torchvision"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
from mixjax.export.__main__ import run
sys.exit(run(sys.argv[1:]))
"""


def test_neither_torch_nor_tensorflow_is_needed(runs, tmp_path):
    command = [sys.executable, "-c", BLOCKED, f"--workdir={runs('simmim_swin')}"]
    command += ["--to=timm", f"--out={tmp_path / 'x.safetensors'}"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"x.safetensors", "x.md"}
    assert "Not compared" in (tmp_path / "x.md").read_text()


def test_a_probe_without_its_classifier(runs):
    """The statistics of its norm, the only ones of the run, stay behind."""
    whole = store.load(str(runs("vit_probed")), "encoder", False, None).arrays
    left = store.load(str(runs("vit_probed")), "encoder", False, False).arrays
    assert all(np.array_equal(v, whole[k]) for k, v in left.items())
    assert set(left) == {k for k in whole if k.startswith("encoder/")} < set(whole)


def test_the_teacher_is_another(runs):
    one, two = (
        store.load(runs("resnet", teacher=True), part, False, None)
        for part in ("encoder", "teacher")
    )
    assert one.arrays.keys() == two.arrays.keys()
    kernel = "encoder/conv1/kernel"
    assert not np.array_equal(one.arrays[kernel], two.arrays[kernel])


# --- names and files -------------------------------------------------------------


def converted(name):
    """MoCo's public converter, as spec and README of that project describe it."""
    name = name if "layer" in name else f"stem.{name}"
    for i in (1, 2, 3, 4):
        name = name.replace(f"layer{i}", f"res{i + 1}")
    for i in (1, 2, 3):
        name = name.replace(f"bn{i}", f"conv{i}.norm")
    name = name.replace("downsample.0", "shortcut")
    return name.replace("downsample.1", "shortcut.norm")


def test_detectron2_names_are_the_converters(tmp_path):
    """Of a ResNet-50, narrow so that it is quick; a pickle that pickle reads."""
    encoder = random_checkpoints.RESNET | dict(layers=(3, 4, 6, 3))
    model = random_checkpoints.MODELS["resnet"] | {"encoder": encoder}
    run = random_checkpoints.save(tmp_path / "run", model)
    out = tmp_path / "model.pkl"
    assert export.run([f"--workdir={run}", "--to=detectron2", f"--out={out}"]) == 0
    with open(out, "rb") as file:
        found = pickle.load(file, encoding="latin1")
    assert found.keys() == {"model", "__author__", "matching_heuristics"}
    assert found["matching_heuristics"] is True
    stem = STEMS["imagenet"]
    theirs = torch_models.build("torchvision", {**model, "encoder": encoder}, stem)
    want = {converted(k): tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in found["model"].items()} == want
    assert len(want) == 320 and "res2.0.conv1.norm.running_var" in want
    weights = store.load(str(run), "encoder", False, None)
    named = formats.named(weights, "torchvision")
    for name, array in named.items():
        there = found["model"][converted(name)]
        assert there.dtype == array.dtype
        np.testing.assert_array_equal(there, array)
    assert found["model"]["stem.conv1.norm.num_batches_tracked"] == 3


@pytest.mark.parametrize("run, eps", [("mae", 1e-6), ("simmim_swin", 1e-5)])
def test_hf_config_says_what_differs_from_defaults(runs, run, eps):
    weights = store.load(runs(run), "encoder", False, None)
    found = hf.config(weights)
    assert found["layer_norm_eps"] == eps
    assert found["hidden_act"] == "gelu" and found["qkv_bias"] is True
    side = weights.model["encoder"]["image_size"][0]
    assert found["image_size"] == side and found["num_channels"] == 3
    names = formats.named(weights, "hf")
    pattern = r"encoder\.layer.*attention\.(attention|self)\.query\.weight"
    assert any(re.fullmatch(pattern, n) for n in names)


def test_vitmae_has_our_loss(runs, tmp_path):
    """Exported weights in transformers, the same noise."""
    import jax.numpy as jnp

    from mixjax.methods import mae
    from mixjax.mixtures import tokens

    transformers = pytest.importorskip("transformers")
    flags = [f"--workdir={runs('mae')}", "--to=hf", "--decoder"]
    assert export.run([*flags, f"--out={tmp_path}"]) == 0
    net = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert net.config.norm_pix_loss  # of the run's method
    weights = store.load(runs("mae"), "encoder", True, None)
    network, _ = store.network_of(weights.model)
    params, _ = store.trees(weights.arrays)
    images = some_images(weights)
    noise = np.random.default_rng(1).uniform(size=(2, 16)).astype(np.float32)
    planes = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        want = net(planes, noise=torch.tensor(noise)).loss.item()
    masking = tokens.keep_smallest(jnp.asarray(noise), 4)

    def loss(params):
        outputs, _ = mae.reconstruct(
            network, params, {}, jnp.asarray(images), masking, 4, train=True
        )
        found = outputs["prediction"], jnp.asarray(images), 4, masking, True
        return mae.reconstruction_loss(*found)

    assert abs(float(jax.jit(loss)(params)) - want) < 1e-5


WRONG = [
    (["--to=timm"], "--workdir is missing"),
    (["--workdir=/nowhere", "--to=timm"], "--workdir=/nowhere is not a run"),
    (["--workdir={mae}"], "--to is missing"),
    (["--workdir={mae}", "--to=tim"], "'tim' does not exist.*'timm'"),
    (["--workdir={mae}", "--to=timm", "--chek"], "chek needs a value"),
    (["--workdir={mae}", "--to=timm", "--chek=yes"], "'chek'.*'check'"),
    (["--workdir={mae}", "--to=timm", "--part=teacher"], "mae, has no teacher"),
    (["--workdir={mae}", "--to=timm", "--decoder"], "no names for a decoder.*mae"),
    (["--workdir={mae}", "--to=torchvision"], "no names for a vit encoder"),
    (["--workdir={mae}", "--to=mae", "--head"], "has no classifier"),
    (["--workdir={vit}", "--to=mae", "--decoder"], "--decoder: .* has none"),
    (["--workdir={vit_tuned}", "--to=hf"], "no norm after the mean"),
    (["--workdir={vit_mean}", "--to=hf"], "reads the class token"),
    (["--workdir={beit}", "--to=hf"], "beit encoder; it goes to timm, npz"),
    (["--workdir={mae}", "--to=timm", "--image_size=18"], "nearest multiples"),
    (["--workdir={mae}", "--to=timm", "--image_size=0"], "is not a size"),
    (["--workdir={mae}", "--to=hf", "--decoder", "--image_size=20"], "leave it out"),
    (["--workdir={swin}", "--to=hf", "--image_size=16"], "one size of windows"),
    (["--workdir={mae}", "--to=npz", "--check"], "which torch has not"),
]


@pytest.mark.parametrize("flags, message", WRONG)
def test_what_does_not_go_is_said_in_a_sentence(runs, tmp_path, capsys, flags, message):
    words = {
        k: runs(k)
        for k in random_checkpoints.MODELS
        if any(f"{{{k}}}" in f for f in flags)
    }
    flags = [f.format(**words) for f in flags]
    assert export.run([*flags, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_network_is_refused(runs, tmp_path, capsys):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(runs("vit"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["encoder"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert export.run([f"--workdir={folder}", "--to=timm"]) == 2
    assert "blocks_2" in capsys.readouterr().err
    assert not (folder / "export").exists()
