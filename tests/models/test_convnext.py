"""ConvNeXt: its size, PyTorch's results under timm's names and back, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.errors import UsageError
from mixjax.export import __main__ as export
from mixjax.export import check, formats, read_foreign
from mixjax.export import weights as store
from tests.support import random_checkpoints, tiny

SMALL = dict(name="convnext", image_size=(32, 48), channels=3, stem=4, mlp_ratio=4.0)
SMALL |= dict(depths=(1, 2, 1), widths=(8, 12, 16), layer_scale=1e-6)
SMALL |= dict(drop_path=0.0, remat="none")
CLASSIFIER = random_checkpoints.CLASSIFIER
TINY = {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768), "image_size": (224, 224)}


def network(classifier=None, **changes):
    sections = {"precision": "float32", "encoder": SMALL | changes}
    return models.make(sections | ({"classifier": classifier} if classifier else {}))


def images(n=2, size=(32, 48)):
    return jax.random.normal(jax.random.key(5), (n, *size, 3))


def test_convnext_t_has_the_size_of_the_paper():
    """28.6 M parameters (table 1); 28,589,128 in timm."""
    net = network(CLASSIFIER | {"classes": 1000}, **TINY)
    shapes, _ = jax.eval_shape(net.init, jax.random.key(0), images(1, (224, 224)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 28_589_128
    assert net.geometry.patch == 32 and net.geometry.grid == (7, 7)


def test_maps_of_any_size():
    net = network()
    params, stats = net.init(jax.random.key(0), images())
    assert net.geometry.grid == (2, 3)
    for size, grid in (((32, 48), (2, 3)), ((64, 35), (4, 2))):
        outputs, _ = net.apply(params, stats, images(size=size), train=False)
        assert outputs["map"].shape == (2, *grid, 16)
        assert outputs["features"].shape == (2, 16)


def test_recomputed_blocks_have_the_same_gradient():
    plain, again = network(), network(remat="block")
    params, stats = plain.init(jax.random.key(0), images())

    def gradient(net):
        output = lambda p: net.apply(p, stats, images(), train=True)[0]["features"]
        return jax.jit(jax.grad(lambda p: jnp.square(output(p)[:, 0]).sum()))(params)

    for a, b in zip(
        *(jax.tree.leaves(gradient(n)) for n in (plain, again)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_skipped_branches_leave_their_input():
    """With a layer scale of 1, dropping the last branch changes some examples only."""
    net = network(drop_path=0.9, layer_scale=1.0)
    params, stats = net.init(jax.random.key(0), images())
    run = lambda train, key: net.apply(params, stats, images(16), train=train, rng=key)
    evaluated = run(False, None)[0]["features"]
    trained = run(True, jax.random.key(3))[0]["features"]
    changed = jnp.abs(trained - evaluated).max(axis=1) > 1e-3
    assert changed.any() and np.isfinite(trained).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"widths": (8, 12)}, r"depths=\(1, 2, 1\) and .* differ in length"),
        ({"image_size": (8, 8)}, "is smaller than 16 pixels"),
        ({"remat": "blocks"}, "remat 'blocks' does not exist.* 'block'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        network(**changes)


# --- PyTorch -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of an untrained run with a classifier."""
    folder = tmp_path_factory.mktemp("runs") / "convnext"
    model = dict(encoder=SMALL | {"channels": 1}, classifier=CLASSIFIER)  # digits
    return random_checkpoints.save(folder, model)


def test_timms_names_and_back_are_bit_equal(run, tmp_path):
    weights = store.load(str(run), "encoder", False, None)
    file = tmp_path / "convnext.safetensors"
    assert export.run([f"--workdir={run}", "--to=timm", f"--out={file}"]) == 0
    hints = {"encoder": {"image_size": SMALL["image_size"]}}
    returned = read_foreign.read(file, "--from", hints)
    assert returned.arrays.keys() == weights.arrays.keys()
    for path, array in weights.arrays.items():
        np.testing.assert_array_equal(returned.arrays[path], array, err_msg=path)
    names = formats.named(weights, "timm")
    assert {"stem.0.weight", "stages.1.downsample.1.weight", "head.fc.bias"} <= set(
        names
    )
    assert names["stages.0.blocks.0.conv_dw.weight"].shape == (8, 1, 7, 7)


def test_pytorch_computes_the_same(run, tmp_path, capsys):
    """--check: the exported file, loaded strictly, in a process of its own."""
    pytest.importorskip("torch")
    assert check.default_reference("convnext")
    flags = [f"--workdir={run}", "--to=timm", "--check", f"--out={tmp_path / 'x'}"]
    assert export.run(flags) == 0
    output = capsys.readouterr().out
    assert "features" in output and "logits" in output


# --- training ------------------------------------------------------------------------


VARIANT = "encoder=convnext,encoder.stem=2,encoder.depths=1-1,encoder.widths=8-16,"
VARIANT += "encoder.mlp_ratio=2.,encoder.layer_scale=1.,encoder.drop_path=0.,"
VARIANT += "encoder.remat=none"


def test_it_trains_under_moco(tmp_path):
    config = tiny.siamese("moco", "unmix", VARIANT, steps=6)
    losses = tiny.metrics(tiny.run(tmp_path, config))
    assert config.model.encoder.name == "convnext" and len(losses) >= 2
    assert np.isfinite(list(losses.values())).all()


def test_it_is_fine_tuned_with_layer_decay(tmp_path):
    config = tiny.supervised("finetune", VARIANT, steps=12)
    assert config.optim.layer_decay < 1 and tuple(config.optim.layers) == (1, 1)
    losses = list(tiny.metrics(tiny.run(tmp_path, config)).values())
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
