"""Looking at runs: pictures of every masked method and attention maps side by side."""

import re

import numpy as np
import pytest
from PIL import Image

from configs import common
from mixjax import look
from mixjax.errors import UsageError
from mixjax.evals import attention
from tests.support import tiny


@pytest.fixture(scope="module", params=["mixedae", "misimmim"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny.masked(request.param, steps=2)
    settings.evals.attention = common.attention(every_epochs=0.0)
    return tiny.run(folder, settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("mae"), tiny.masked("mae", steps=2))


def opened(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_maps_are_drawn_while_training(trained):
    assert opened(trained / "figures" / "attention_0000002.png").std() > 10


def test_attention_of_every_kind_of_network():
    """Rows sum to 1; the class token's row, or what each place gets from all."""
    full = np.full((2, 5, 5), 0.2)
    full[:, 0, 1:] = [0.4, 0.3, 0.2, 0.1]
    maps = attention.to_map(full, (2, 2))
    np.testing.assert_allclose(maps, np.full((2, 1, 1), 1) * [[0.4, 0.3], [0.2, 0.1]])
    swin = np.eye(9)[None].repeat(2, 0)
    assert attention.to_map(swin, (24, 24)).shape == (2, 3, 3)
    with pytest.raises(UsageError, match="windows of 9 tokens on a map of"):
        attention.to_map(swin, (24, 16))


def test_light_falls_where_attention_is():
    images = np.full((1, 8, 8, 3), 200, np.uint8)
    heat = np.zeros((1, 2, 2))
    heat[0, 0, 1] = 1
    lit = attention.overlay(images, heat)[0, :, :, 0]
    assert lit[0, 7] > 190 and lit[7, 0] < 40


def test_two_runs_side_by_side(trained, plain, capsys):
    before = sorted(p.name for p in (trained / "checkpoints").iterdir())
    flags = [f"--workdir={trained}", f"--beside={plain}", "--count=4"]
    assert look.run(flags) == 0
    paths = capsys.readouterr().out.split()
    assert [p.rsplit("/", 1)[1] for p in paths] == ["pictures.png", "attention.png"]
    pages = [opened(path) for path in paths]
    assert all(page.std() > 10 for page in pages)
    assert look.run([flags[0], "--count=4", f"--out={trained}/alone"]) == 0
    alone = opened(trained / "alone" / "attention.png")
    assert alone.shape[1] < pages[1].shape[1]
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == before


def test_other_pictures(plain, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (40, 30), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    view = "decode_center(16, 18, channels=1) | normalize((.3,), (.4,))"
    flags = [f"--workdir={plain}", f"--out={tmp_path / 'out'}", "--count=8"]
    fields = {"source": f"folder:{tmp_path}", "on_device": "False", "eval_view": view}
    fields["views"] = f"('{view}',)"
    flags += [f"--config.data.{k}={v}" for k, v in fields.items()]
    assert look.run(flags) == 0
    assert (tmp_path / "out" / "attention.png").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--workdir is missing"),
        (["--workdir=/nowhere"], "--workdir=/nowhere is not a run"),
        (["--workdir=x", "--cuont=3"], "cuont.*count"),
        (["--workdir=x", "--count=none"], "--count=none is not a number"),
    ],
)
def test_wrong_flags(flags, message, capsys):
    assert look.run(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)
