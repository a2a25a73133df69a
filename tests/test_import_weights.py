"""Weights of other projects as runs: what comes back, what it is for, what is not."""

import argparse
import collections
import os
import pickle
import random
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import evaluate, import_weights, look
from mixjax.errors import UsageError
from mixjax.export import __main__ as export
from mixjax.export import files, formats, read_foreign, safe_unpickle
from mixjax.export import weights as store
from mixjax.methods import mae
from mixjax.mixtures import tokens
from mixjax.models import positions
from mixjax.models.resnet import STEMS
from mixjax.sharding import meshes
from mixjax.state import TrainState
from mixjax.training import warm_start
from tests.support import random_checkpoints, tiny

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("tests.support.torch_models")

ROUND = [
    ("mae", "mae", True),
    ("mae", "hf", True),
    ("mae", "npz", True),
    ("vit", "hf", False),
    ("vit_mean", "timm", False),
    ("vit_tuned", "timm", False),
    ("vit_probed", "mae", False),
    ("simmim_vit", "timm", False),
    ("simmim_vit", "npz", True),
    ("beit", "timm", False),
    ("swin", "timm", False),
    ("simmim_swin", "hf", True),
    ("resnet", "torchvision", False),
    ("resnet", "detectron2", False),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> the folder of an untrained run, made once."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def get(name):
        if name not in made:
            made[name] = random_checkpoints.save(
                root / name, random_checkpoints.MODELS[name]
            )
        return str(made[name])

    return get


def written(runs, folder, run, to, decoder=False):
    """The file of an export."""
    out = folder / f"{run}.{formats.TARGETS[to].kind}"
    flags = [f"--workdir={runs(run)}", f"--to={to}", f"--out={out}"]
    assert export.run(flags + ["--decoder"] * decoder) == 0
    return out


def equal(one, two):
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == two[name].dtype
        np.testing.assert_array_equal(array, two[name], err_msg=name)


@pytest.mark.parametrize("run, to, decoder", ROUND)
def test_what_goes_out_comes_back_to_the_bit(runs, tmp_path, run, to, decoder):
    out = written(runs, tmp_path, run, to, decoder)
    back = tmp_path / "back"
    flags = [f"--from={out}", f"--workdir={back}"]
    if to == "detectron2":  # the only file that says nothing of pictures
        flags += ["--image_size=17x24"]
    assert import_weights.run(flags) == 0
    old = store.load(runs(run), "encoder", decoder, None)
    new = store.load(str(back), "encoder", decoder, None)
    want = dict(old.arrays)
    if not decoder and to != "npz":
        want.pop("encoder/mask_token", None)
    equal(want, new.arrays)
    differs = {"mask_token", "stem_init"}
    for field, value in old.model["encoder"].items():
        if field not in differs:
            assert new.model["encoder"][field] == value, field


def torch_state(run, to="timm", prefix=""):
    """(tensors of the small torch network of a run's model, by name)."""
    model = {
        k: v for k, v in random_checkpoints.MODELS[run].items() if k != "pixel_head"
    }
    stem = STEMS.get(model["encoder"].get("stem"))
    torch.manual_seed(0)
    net = torch_models.build(to, model, stem)
    state = {prefix + k: torch.randn(v.shape) for k, v in net.state_dict().items()}
    return {k: v for k, v in state.items() if "num_batches" not in k}


def moco(state):
    """What MoCo saves: both encoders, the queue, and more around it."""
    state = {k: v for k, v in state.items() if not k.startswith("fc")}
    heads = {"fc.0.weight": torch.randn(64, 64), "fc.0.bias": torch.randn(64)}
    heads |= {"fc.2.weight": torch.randn(16, 64), "fc.2.bias": torch.randn(16)}
    both = {f"module.encoder_q.{k}": v for k, v in (state | heads).items()}
    both |= {k.replace("encoder_q", "encoder_k"): -v for k, v in both.items()}
    both["module.queue"], both["module.queue_ptr"] = torch.randn(16, 8), torch.zeros(1)
    args = argparse.Namespace(lr=0.03, schedule=[120, 160], out=Path("/tmp/x"))
    return {"epoch": 200, "arch": "resnet50", "state_dict": both, "args": args}


def simmim(state):
    """What SimMIM saves: its merging closes a stage, its decoder is a convolution."""
    pattern = re.compile(r"layers\.(\d)\.downsample")
    earlier = lambda m: f"layers.{int(m[1]) - 1}.downsample"
    state = {f"encoder.{pattern.sub(earlier, k)}": v for k, v in state.items()}
    state = {k: v for k, v in state.items() if "head" not in k}
    state["decoder.0.weight"] = torch.randn(8 * 8 * 3, 32, 1, 1)
    state["decoder.0.bias"] = torch.randn(8 * 8 * 3)
    return {"model": state, "optimizer": {"state": {}, "lr": 1e-3}}


MASKED = {"mask_token": torch.randn(1, 1, 8)}
FOREIGN = {  # what is saved, flags, parts, a tensor of theirs and ours of it
    "official MAE": (
        lambda: {"model": torch_state("vit", "mae"), "args": argparse.Namespace(a=1)},
        ["--image_size=16x24", "--config.model.encoder.heads=3"],
        ["encoder", "classifier"],
        ("blocks.1.attn.qkv.weight", "encoder/blocks_1/attn/qkv/kernel"),
    ),
    "DINO's teacher": (
        lambda: {"teacher": torch_state("vit", prefix="module.backbone.")},
        ["--image_size=16x24", "--config.model.encoder.heads=3"],
        ["encoder", "classifier"],
        ("module.backbone.norm.bias", "encoder/norm/bias"),
    ),
    "MoCo": (
        lambda: moco(torch_state("resnet")),
        [],
        ["encoder", "projector"],
        ("module.encoder_q.layer2.1.bn3.running_var", "encoder/layer2_1/bn3/var"),
    ),
    "torchvision": (
        lambda: collections.OrderedDict(torch_state("resnet")),
        ["--image_size=40"],
        ["encoder", "classifier"],
        ("fc.weight", "classifier/head/kernel"),
    ),
    "SimMIM": (
        lambda: simmim(torch_state("swin") | MASKED),
        ["--image_size=32"],
        ["encoder", "pixel_head"],
        ("encoder.layers.1.downsample.reduction.weight", None),
    ),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_other_projects(tmp_path, kind, legacy):
    make, flags, parts, (theirs, ours) = FOREIGN[kind]
    saved = make()
    how = {"_use_new_zipfile_serialization": not legacy}
    torch.save(saved, tmp_path / "x.pth", **how)
    run = tmp_path / "run"
    flags = [f"--from={tmp_path / 'x.pth'}", f"--workdir={run}", *flags]
    assert import_weights.run(flags) == 0
    weights = read_foreign.read(tmp_path / "x.pth", "it", hints(flags))
    assert sorted(weights.parts) == sorted(parts)
    found = (
        next(v for v in saved.values() if isinstance(v, dict))
        if (kind != "torchvision")
        else saved
    )
    want = found[theirs].numpy()
    want = want.T if want.ndim == 2 else want
    ours = ours or "encoder/stage_1/merge/reduction/kernel"
    np.testing.assert_array_equal(weights.arrays[ours], want)
    if kind != "SimMIM":
        loaded = store.load(str(run), "encoder", False, None)
        equal(
            {
                k: v
                for k, v in weights.arrays.items()
                if k.split("/")[0] in loaded.parts
            },
            loaded.arrays,
        )


def hints(flags):
    fields = {k: v for k, v in (f[2:].split("=", 1) for f in flags) if "config." in k}
    sizes = [f.partition("=")[2] for f in flags if "image_size" in f]
    return import_weights.hints_of(fields, export.size_of(sizes[0]) if sizes else None)


def test_numbers_agree_with_the_network_they_came_from(tmp_path):
    """A Swin with SimMIM's placement of mergings, against timm's."""
    state = torch_state("swin")
    torch.save(simmim(state | MASKED), tmp_path / "x.pth")
    weights = read_foreign.read(tmp_path / "x.pth", "it", hints(["--image_size=32"]))
    model = {"encoder": random_checkpoints.MODELS["swin"]["encoder"]}
    net = torch_models.build("timm", model, None).eval()
    net.load_state_dict({k: v for k, v in state.items() if "head" not in k})
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        want = net.outputs(torch.tensor(images.transpose(0, 3, 1, 2).copy()))["map"]
    network, _ = store.network_of(weights.model)
    params, stats = store.trees(weights.arrays)
    found = jax.jit(network.encode)(params, stats, jnp.asarray(images))["map"]
    scale = np.abs(want.numpy()).max()
    np.testing.assert_allclose(found, want.numpy(), atol=5e-5 * max(scale, 1))


def decoder_table(net):
    return net.decoder.decoder_pos_embed


@pytest.mark.parametrize("form", ["save_pretrained", "state_dict"])
def test_vitmae_comes_in_with_its_loss(tmp_path, form):
    """transformers' own random weights, in its files' names and in memory's."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        image_size=16,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        layer_norm_eps=1e-6,
        norm_pix_loss=True,
    )
    torch.manual_seed(3)
    net = transformers.ViTMAEForPreTraining(config).eval()
    known = ["--config.model.encoder.heads=3", "--config.model.decoder.heads=2"]
    path, position = tmp_path / "model.safetensors", "sincos"
    if form == "save_pretrained":
        for table in (net.vit.embeddings.position_embeddings, decoder_table(net)):
            fixed = positions.sincos_2d((4, 4), table.shape[-1], True)[None]
            table.data[:] = torch.tensor(fixed)
        net.save_pretrained(tmp_path)
        known = []  # its config.json says them
    else:
        # Some versions of transformers leave zeros in a new network's tables.
        path, position = tmp_path / "model.pt", "learned"
        decoder_table(net).data[:] = 0.5
        torch.save(net.state_dict(), path)
    weights = read_foreign.read(path, "it", hints(known))
    assert weights.model["decoder"]["position"] == position
    assert form == "state_dict" or weights.config["method"]["norm_pix"]
    network, _ = store.network_of(weights.model)
    params, _ = store.trees(weights.arrays)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    noise = np.random.default_rng(1).uniform(size=(2, 16)).astype(np.float32)
    with torch.no_grad():
        planes = torch.tensor(images.transpose(0, 3, 1, 2).copy())
        want = net(planes, noise=torch.tensor(noise)).loss.item()
    masking = tokens.keep_smallest(jnp.asarray(noise), 4)

    def loss(params):
        outputs, _ = mae.reconstruct(
            network, params, {}, jnp.asarray(images), masking, 4, train=True
        )
        found = outputs["prediction"], jnp.asarray(images), 4, masking, True
        return mae.reconstruction_loss(*found)

    assert abs(float(jax.jit(loss)(params)) - want) < 1e-5


# --- what it is for --------------------------------------------------------------


def test_an_imported_run_is_evaluated_and_looked_at(tmp_path, capsys):
    """With a recipe for its data: the quickstart's digits."""
    encoder = random_checkpoints.SQUARE | {"channels": 1}
    random_checkpoints.save(tmp_path / "old", {"encoder": encoder})
    flags = [f"--workdir={tmp_path / 'old'}", "--to=timm"]
    assert export.run([*flags, f"--out={tmp_path / 'x.safetensors'}"]) == 0
    run = tmp_path / "new"
    flags = [f"--from={tmp_path / 'x.safetensors'}", f"--workdir={run}"]
    flags += [f"--config={tiny.ROOT}/configs/quickstart.py"]
    flags += ["--config.evals.knn.bank=100", "--config.evals.knn.queries=50"]
    assert import_weights.run(flags) == 0
    assert evaluate.run([f"--workdir={run}"]) == 0
    assert "knn/k=20" in capsys.readouterr().out
    assert look.run([f"--workdir={run}", "--count=2"]) == 0
    assert (run / "figures" / "look" / "attention.png").exists()
    assert import_weights.run(flags) == 2
    assert "exists already" in capsys.readouterr().err


def test_fine_tuning_starts_from_a_file(tmp_path):
    """An exported encoder as init_from of another network."""
    settings = tiny.supervised("finetune", "encoder=vit,strong=0", steps=1)
    encoder = settings.model.encoder.to_dict()
    encoder |= {"pool": "class", "position": "sincos", "scan": False, "drop_path": 0.0}
    old = random_checkpoints.save(tmp_path / "old", {"encoder": encoder})
    flags = [f"--workdir={old}", "--to=mae", f"--out={tmp_path / 'x.safetensors'}"]
    assert export.run(flags) == 0
    settings.init_from = str(tmp_path / "x.safetensors")
    network, image = store.network_of(settings.model.to_dict())
    params, stats = jax.eval_shape(network.init, jax.random.key(0), image)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, {}, stats, {}, {})
    layout = meshes.lay_out(meshes.make(fsdp=1), state, ())
    given, origin = warm_start.warm_start(settings, layout)
    assert origin == {}
    assert list(given["params"]) == ["encoder"]
    new = store.flat(given)
    want = store.load(str(old), "encoder", False, None).arrays
    names = [k for k in want if "norm/" not in k.replace("fc_norm", "")]
    assert len(names) == 27
    equal({k: want[k] for k in names}, {k: new[k] for k in names})
    table = positions.sincos_2d((4, 4), 16, True)[None]
    np.testing.assert_array_equal(new["encoder/pos_embed"], table)
    settings.init_from = str(tmp_path / "x.md")
    with pytest.raises(UsageError, match="init_from=.*x.md is neither"):
        warm_start.warm_start(settings, layout)


# --- what is refused -------------------------------------------------------------


class Hostile:
    """What would write a file if anything ran it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy", "protocol 0"])
def test_a_pickle_that_calls_something_is_refused(tmp_path, capsys, form):
    trap, path = tmp_path / "trap", tmp_path / "x.pth"
    thing = {"model": {"w": torch.ones(2)}, "more": Hostile(trap)}
    if form in ("pickle", "protocol 0"):
        thing = {"model": {"w": np.ones(2)}, "more": Hostile(trap)}
        path.write_bytes(pickle.dumps(thing, protocol=0 if form[0:2] == "pr" else 4))
    else:
        torch.save(thing, path, _use_new_zipfile_serialization=form == "zip")
    flags = [f"--from={path}", f"--workdir={tmp_path / 'run'}"]
    assert import_weights.run(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is refused: it asks for posix.mkdir" in error
    assert not trap.exists() and not (tmp_path / "run").exists()


def test_torn_and_garbled_files_are_refused_in_a_sentence(tmp_path):
    """Hundreds of broken copies: a UsageError each, or what happens to be whole."""
    state = {k: v[:1] for k, v in torch_state("vit").items()}
    thing = {"model": state, "args": argparse.Namespace(lr=1.0), "acc": np.float64(2)}
    dice, path, refused = random.Random(0), tmp_path / "x.pth", 0
    for zipped in (True, False):
        torch.save(thing, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for turn in range(150):
            data = bytearray(whole[: dice.randrange(len(whole)) if turn < 50 else None])
            for _ in range(turn % 5 if data else 0):
                data[dice.randrange(min(len(data), 4000))] = dice.randrange(256)
            path.write_bytes(data)
            try:
                safe_unpickle.read(path)
                files.read(path, "it")
            except UsageError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 100


def test_a_tensor_beyond_its_numbers_is_refused():
    storage = safe_unpickle.Storage(np.dtype("<f4"), 6, lambda: bytes(24))
    assert safe_unpickle.tensor(storage, 0, (2, 3), (3, 1)).array().shape == (2, 3)
    beyond = [(1, (2, 3), (3, 1)), (0, (7,), (1,)), (0, (10**9, 3), (0, 1))]
    for offset, shape, strides in [*beyond, (-1, (2,), (1,)), (0, (2,), (-1,))]:
        with pytest.raises(ValueError, match="tensor"):
            safe_unpickle.tensor(storage, offset, shape, strides)


def broken(kind, whole, folder):
    """A file that is `kind` of broken."""
    path = folder / "broken.safetensors"
    named, _ = files.read(whole, "it")
    if kind == "torn":
        path.write_bytes(whole.read_bytes()[:-40])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        if kind == "wrong shape":
            named["blocks.0.mlp.fc2.weight"] = np.ones((24, 5), np.float32)
        elif kind == "flat":
            named["patch_embed.proj.weight"] = np.ones(5, np.float32)
        elif kind == "missing":
            del named["norm.bias"]
        elif kind == "no class token":
            del named["cls_token"]
        elif kind == "strange":
            named["blocks.0.ls1.gamma"] = np.ones(24, np.float32)
        elif kind == "other":
            named = {"lstm.weight": np.ones(3, np.float32)}
        files.write_safetensors(path, named, {})
    return path


REFUSED = {
    "torn": "is broken",
    "empty": "is broken",
    "wrong shape": r"blocks_0/mlp/fc2/kernel \(5, 24\)",
    "flat": "does not fit|is not whole",
    "missing": "encoder/norm/bias missing",
    "no class token": "no class token",
    "strange": "another network: blocks.0.ls1.gamma",
    "other": "none of its 1 tensors has a known name",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_broken_files_are_refused(runs, tmp_path, capsys, kind):
    whole = written(runs, tmp_path, "mae", "timm")
    path = broken(kind, whole, tmp_path)
    before = sorted(tmp_path.iterdir())
    flags = [f"--from={path}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.model.encoder.heads=3"]
    assert import_weights.run(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(REFUSED[kind], error), error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir=x"], "--from is missing"),
        (["--from=/nowhere.pth", "--workdir=x"], "no such file"),
        (["--form=x", "--workdir=x"], "'form'.*'from'"),
    ],
)
def test_wrong_flags(flags, message, capsys):
    assert import_weights.run(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_heads_that_nothing_says_have_to_be_named(runs, tmp_path, capsys):
    whole = written(runs, tmp_path, "mae", "timm")
    path = broken("nothing", whole, tmp_path)
    flags = [f"--from={path}", f"--workdir={tmp_path / 'run'}"]
    assert import_weights.run(flags) == 2
    assert "--config.model.encoder.heads=N" in capsys.readouterr().err
    assert import_weights.run([*flags, "--config.model.encoder.heads=3"]) == 0


def test_a_decoder_that_is_not_there(runs, tmp_path, capsys):
    """An encoder's file, imported, has none to export."""
    whole = written(runs, tmp_path, "mae", "hf")
    run = tmp_path / "run"
    assert import_weights.run([f"--from={whole}", f"--workdir={run}"]) == 0
    capsys.readouterr()
    flags = [f"--workdir={run}", "--to=mae", "--decoder", f"--out={tmp_path / 'out'}"]
    assert export.run(flags) == 2
    error = capsys.readouterr().err
    assert "--decoder" in error and "has none" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_positions_are_resampled_on_the_way_in(runs, tmp_path):
    whole = written(runs, tmp_path, "mae", "mae")
    run = tmp_path / "run"
    flags = [f"--from={whole}", f"--workdir={run}", "--image_size=24x20"]
    assert import_weights.run(flags) == 0
    found = store.load(str(run), "encoder", False, None)
    assert found.arrays["encoder/pos_embed"].shape == (1, 1 + 6 * 5, 24)
    old = store.load(runs("mae"), "encoder", False, None)
    want = store.resized(old, (24, 20)).arrays["encoder/pos_embed"]
    np.testing.assert_array_equal(found.arrays["encoder/pos_embed"], want)
