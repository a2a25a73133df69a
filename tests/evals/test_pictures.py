"""Pictures: back to the very pixels, each at its place on the sheet."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from mixjax.data.views import parse
from mixjax.evals import pictures
from mixjax.evals.pictures import GAP


def all_levels(channels):
    """[2, 16, 16, C], in which every channel has every level."""
    levels = np.arange(512).reshape(2, 16, 16, 1) % 256
    return ((levels + 50 * np.arange(channels)) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    "text, channels",
    [
        ("normalize", 3),
        ("normalize((.4914, .4822, .4465), (.2023, .1994, .2010))", 3),
        ("normalize((.3,), (.4,))", 1),
        ("flip(p=0.)", 3),
    ],
)
def test_to_pixels_undoes_normalize_exactly(text, channels):
    view, images = parse(text, "view"), all_levels(channels)
    seen = jax.jit(jax.vmap(view.device, in_axes=(None, 0)))(jax.random.key(0), images)
    back = pictures.to_pixels(np.asarray(seen), view.mean, view.std)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, np.broadcast_to(images, (2, 16, 16, 3)))


def test_to_pixels_clips_and_rounds():
    images = np.array([-3, -0.001, 0.4 / 255, 0.6 / 255, 1.001, 9]).reshape(1, 1, 6, 1)
    found = pictures.to_pixels(images, (0.0,), (1.0,))
    np.testing.assert_array_equal(
        found[0, 0], [[v] * 3 for v in (0, 0, 0, 1, 255, 255)]
    )


def panels(count, height, width):
    rng = np.random.default_rng(0)
    shape = (2, count, height, width, 3)
    first, second = rng.integers(0, 255, shape, dtype=np.uint8)  # none is white
    return {"input": first, "kept": second}


@pytest.mark.parametrize(
    "height, width, zoom", [(96, 100, 1), (100, 40, 1), (40, 60, 3), (8, 8, 12)]
)
def test_every_pixel_is_at_its_place_on_the_sheet(height, width, zoom):
    columns = panels(3, height, width)
    page = pictures.sheet(columns)
    h, w = height * zoom, width * zoom
    top = page.height - 3 * (h + GAP)
    assert page.width == GAP + 2 * (w + GAP)
    assert top >= GAP + 12
    rest = np.array(page)
    for i, images in enumerate(columns.values()):
        for j, image in enumerate(images):
            x, y = GAP + i * (w + GAP), top + j * (h + GAP)
            place = rest[y : y + h, x : x + w]
            large = np.kron(image, np.ones((zoom, zoom, 1), np.uint8))
            np.testing.assert_array_equal(place, large)
            place[:] = 255
    assert (rest[top:] == 255).all(), "between the pictures the sheet is white"
    assert (rest[:top] != 255).any(), "there are captions above"


def test_a_long_caption_makes_room_for_its_lines():
    columns = panels(1, 96, 96)
    short = pictures.sheet(columns)
    words = "reconstruction with the true mean and deviation of each patch"
    long = pictures.sheet({words: columns["input"], "kept": columns["kept"]})
    assert long.width == short.width
    more = long.height - short.height
    assert more > 0 and more % 12 == 0


def test_wrap_breaks_between_words():
    class Font:
        getlength = staticmethod(len)

    wrap = lambda text: pictures.wrap(text, 9, Font)
    assert wrap("one two three four") == ["one two", "three", "four"]
    assert wrap("unbelievable word") == ["unbelievable", "word"]
    assert wrap("") == [""]


def test_save_writes_in_one_move_and_returns_the_file(tmp_path):
    path = tmp_path / "figures" / "pictures_0000001.png"
    for value in (10, 20):  # the second time over the first
        page = Image.new("RGB", (4, 3), (value, 0, 0))
        png = pictures.save(page, path)
        assert path.read_bytes() == png
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        again = Image.open(io.BytesIO(png))
        assert again.size == (4, 3) and again.getpixel((0, 0)) == (value, 0, 0)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figures" / "a.png"
    old = pictures.save(Image.new("RGB", (4, 3)), path)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(pictures.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.save(Image.new("RGB", (8, 8)), path)
    assert path.read_bytes() == old
