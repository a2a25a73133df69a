"""Files of every kind to pixels, as Pillow and a viewer would show them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mixjax.data import decode, host_ops
from mixjax.data.decode import Unreadable, pixels

RNG = np.random.default_rng(0)


def scene(height, width, channels=3):
    """Smooth colours with some detail, uint8 [H, W, channels]."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [
        np.sin(x / (7 + 20 * c)) + np.cos(y / (9 + 5 * c)) + 0.4 * np.sin(x * y / 90)
        for c in range(channels)
    ]
    return (np.stack(waves, axis=-1) * 50 + 127).clip(0, 255).astype(np.uint8)


def saved(image, form, **options):
    """An image or array -> the bytes of a file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def opened(data, mode):
    """What Pillow makes of a file, [H, W, C]."""
    with Image.open(io.BytesIO(data)) as image:
        array = np.asarray(image.convert(mode))
    return array.reshape(*array.shape[:2], -1)


def over_white(colour, alpha):
    """[H, W, C] and [H, W], both uint8 -> what one sees on white paper."""
    share = alpha[:, :, None] / 255
    return colour * share + 255 * (1 - share)


# --- lossless files ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files(form):
    image = scene(9, 13)
    data = saved(image, form)
    np.testing.assert_array_equal(pixels(data, 3), image)
    np.testing.assert_array_equal(pixels(data, 1), opened(data, "L"))


def test_webp_and_gif():
    image = scene(9, 13)
    np.testing.assert_array_equal(pixels(saved(image, "WEBP", lossless=True), 3), image)
    few = (image[:, :, :1] // 64 * 64).repeat(3, axis=2)  # 4 colours fit any palette
    second = Image.fromarray(few[::-1])
    data = saved(few, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(pixels(data, 3), few)  # of an animation, the first


def test_grey_becomes_three_equal_channels_or_stays_one():
    grey = scene(9, 13, 1)
    data = saved(grey[:, :, 0], "PNG")
    np.testing.assert_array_equal(pixels(data, 1), grey)
    np.testing.assert_array_equal(pixels(data, 3), grey.repeat(3, axis=2))


def test_one_bit():
    bits = scene(9, 13, 1)[:, :, 0] > 127
    found = pixels(saved(bits, "PNG"), 1)
    np.testing.assert_array_equal(found[:, :, 0], bits * np.uint8(255))


def test_sixteen_bits_keep_the_high_byte():
    deep = RNG.integers(0, 65536, (9, 13)).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        data = saved(deep, form)
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "I;16"
        np.testing.assert_array_equal(pixels(data, 1)[:, :, 0], deep >> 8)
        np.testing.assert_array_equal(pixels(data, 3)[:, :, 2], deep >> 8)


def test_whole_numbers_of_32_bits_are_taken_for_16():
    deep = RNG.integers(0, 65536, (9, 13)).astype(np.int32)
    found = pixels(saved(deep, "TIFF"), 1)[:, :, 0]
    assert abs(found - deep / 257).max() <= 1


# --- transparency --------------------------------------------------------------------


def test_rgba_lies_on_white():
    image = RNG.integers(0, 256, (9, 13, 4), np.uint8)
    wanted = over_white(image[:, :, :3], image[:, :, 3])
    assert abs(pixels(saved(image, "PNG"), 3) - wanted).max() <= 1
    clear = image.copy()
    clear[:, :, 3] = 0
    assert (pixels(saved(clear, "PNG"), 1) == 255).all()


def test_grey_with_alpha_lies_on_white():
    image = RNG.integers(0, 256, (9, 13, 2), np.uint8)
    wanted = over_white(image[:, :, :1], image[:, :, 1])
    found = pixels(saved(Image.fromarray(image), "PNG"), 1)
    assert abs(found - wanted).max() <= 1


def palette_image(indices):
    image = Image.new("P", indices.shape[::-1])
    image.frombytes(indices.astype(np.uint8).tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    return image


INDICES = RNG.integers(0, 3, (9, 13))
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]])


def test_palette():
    data = saved(palette_image(INDICES), "PNG")
    np.testing.assert_array_equal(pixels(data, 3), COLOURS[INDICES])


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palette_with_a_clear_colour(form):
    data = saved(palette_image(INDICES), form, transparency=1)
    wanted = np.where(INDICES[:, :, None] == 1, 255, COLOURS[INDICES])
    np.testing.assert_array_equal(pixels(data, 3), wanted)


def test_palette_with_half_clear_colours():
    data = saved(palette_image(INDICES), "PNG", transparency=bytes([255, 128, 0]))
    alpha = np.array([255, 128, 0])[INDICES]
    wanted = over_white(COLOURS[INDICES], alpha)
    assert abs(pixels(data, 3) - wanted).max() <= 1


def test_rgb_with_a_clear_colour():
    image = COLOURS[INDICES].astype(np.uint8)
    data = saved(image, "PNG", transparency=(0, 255, 0))
    wanted = np.where(INDICES[:, :, None] == 1, 255, image)
    np.testing.assert_array_equal(pixels(data, 3), wanted)


# --- JPEG ----------------------------------------------------------------------------

JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "RGB": {"keep_rgb": True},
    "coarse": {"quality": 20},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_the_fast_road_shows_what_pillow_shows(kind):
    data = saved(scene(45, 67), "JPEG", **JPEGS[kind])
    if decode.simplejpeg:
        assert decode.plain_jpeg(data) == (45, 67)
    found = pixels(data, 3).astype(int)
    assert abs(found - opened(data, "RGB")).max() <= 1
    # Pillow goes by way of RGB and its clipping, the fast road does not.
    assert abs(pixels(data, 1).astype(int) - opened(data, "L")).mean() < 1


def test_photographs_are_what_pillow_shows(shared):
    for path in sorted((shared / "data/coco_sample/images").glob("*.jpg"))[:6]:
        data = path.read_bytes()
        found = pixels(data, 3).astype(int)
        assert abs(found - opened(data, "RGB")).max() <= 1


def test_without_simplejpeg_it_is_pillow(monkeypatch):
    data = saved(scene(45, 67), "JPEG")
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert decode.plain_jpeg(data) is None
    np.testing.assert_array_equal(pixels(data, 3), opened(data, "RGB"))


def test_a_grey_jpeg():
    data = saved(scene(45, 67, 1)[:, :, 0], "JPEG")
    np.testing.assert_allclose(pixels(data, 1), opened(data, "L"), atol=1)
    np.testing.assert_allclose(pixels(data, 3), opened(data, "RGB"), atol=1)


def test_cmyk_is_left_to_pillow():
    data = saved(Image.fromarray(scene(45, 67)).convert("CMYK"), "JPEG")
    assert decode.plain_jpeg(data) is None
    np.testing.assert_array_equal(pixels(data, 3), opened(data, "RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(scene(24, 40), "JPEG", exif=exif)
    assert decode.has_exif(data) and decode.plain_jpeg(data) is None
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    found = pixels(data, 3)
    np.testing.assert_array_equal(found, wanted)
    assert found.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))


def test_exif_of_a_png_rotates_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = scene(24, 40)
    found = pixels(saved(image, "PNG", exif=exif), 3)
    np.testing.assert_array_equal(found, np.rot90(image, -1))


# --- broken files --------------------------------------------------------------------

WHOLE = saved(scene(45, 67), "JPEG")
PNG = saved(RNG.integers(0, 256, (45, 67, 3), np.uint8), "PNG")
BROKEN = {
    "half a JPEG": WHOLE[: len(WHOLE) // 2],
    "a JPEG without its end": WHOLE[:-200],
    "the head of a JPEG": WHOLE[:30],
    "three bytes of a JPEG": WHOLE[:3],
    "half a PNG": PNG[: len(PNG) // 2],
    "the head of a PNG": PNG[:20],
    "text": b"<html>404 not found</html>",
    "nothing": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_no_whole_picture_is_unreadable(kind, channels):
    with pytest.raises(Unreadable, match="."):
        pixels(BROKEN[kind], channels)


def test_odd_bytes_between_segments_are_forgiven():
    """libjpeg warns of them; many a picture on the web has some."""
    at = WHOLE.index(b"\xff\xdb")
    data = WHOLE[:at] + b"\x12\x34" + WHOLE[at:]
    np.testing.assert_array_equal(pixels(data, 3), opened(WHOLE, "RGB"))
    view = host_ops.decode_crop(8)
    assert view(data, np.random.default_rng(0)).shape == (8, 8, 3)


# --- host operations -----------------------------------------------------------------

FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def centre(image, size, resize_to, filter):
    """torchvision: Resize(resize_to), then CenterCrop(size)."""
    width, height = image.size
    if width <= height:
        to = resize_to, int(resize_to * height / width)
    else:
        to = int(resize_to * width / height), resize_to
    image = image if image.size == to else image.resize(to, FILTERS[filter])
    top = int(round((to[1] - size[0]) / 2.0))
    left = int(round((to[0] - size[1]) / 2.0))
    return np.asarray(image.crop((left, top, left + size[1], top + size[0])))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    "height, width, size, resize_to",
    [
        (60, 91, (24, 24), 28),
        (60, 91, (24, 24), 27),
        (91, 60, (24, 24), 27),
        (50, 50, (24, 20), 24),
        (31, 40, (31, 29), 31),
        (9, 14, (20, 16), 21),
    ],
)
def test_decode_center_is_torchvisions(height, width, size, resize_to, filter):
    data = saved(scene(height, width), "PNG")
    view = host_ops.decode_center(size, resize_to, filter)
    wanted = centre(Image.open(io.BytesIO(data)), size, resize_to, filter)
    np.testing.assert_array_equal(view(data, None), wanted)


def test_decode_center_of_grey():
    grey = Image.fromarray(scene(60, 91, 1)[:, :, 0])
    view = host_ops.decode_center(24, 28, channels=1)
    wanted = centre(grey, (24, 24), 28, "bicubic")
    np.testing.assert_array_equal(view(saved(grey, "PNG"), None)[:, :, 0], wanted)
    found = view(np.asarray(grey), None)  # an array instead of a file
    np.testing.assert_array_equal(found[:, :, 0], wanted)


@pytest.mark.parametrize("filter", FILTERS)
def test_decode_crop_cuts_and_resizes_as_pillow_does(filter):
    image = scene(60, 91)
    view = host_ops.decode_crop((24, 20), (0.3, 1), filter=filter)
    for seed in range(5):
        box = host_ops.sample_box(
            60, 91, (0.3, 1), (3 / 4, 4 / 3), np.random.default_rng(seed)
        )
        top, left, h, w = box
        cut = Image.fromarray(image).crop((left, top, left + w, top + h))
        wanted = np.asarray(cut.resize((20, 24), FILTERS[filter]))
        found = view(saved(image, "PNG"), np.random.default_rng(seed))
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(view(image, np.random.default_rng(seed)), wanted)


@pytest.fixture
def decoded(monkeypatch):
    """Notes the sizes of decoded arrays and of crops, in order."""
    sizes, crops = [], []
    full, resize = decode.pixels, host_ops.resize

    def note_pixels(*args, **how):
        sizes.append(full(*args, **how))
        return sizes[-1]

    def note_crop(array, *args):
        crops.append(array.shape[:2])
        return resize(array, *args)

    monkeypatch.setattr(decode, "pixels", note_pixels)
    monkeypatch.setattr(host_ops, "resize", note_crop)
    return lambda: [(a.shape[:2], c) for a, c in zip(sizes, crops, strict=True)]


@pytest.mark.skipif(decode.simplejpeg is None, reason="the slow road never scales")
@pytest.mark.parametrize("size", [(16, 16), (40, 24)])
def test_a_large_jpeg_is_decoded_small_but_never_below_twice_the_size(decoded, size):
    data = saved(scene(601, 834), "JPEG", quality=95)
    view = host_ops.decode_crop(size, (0.002, 0.05))
    for seed in range(25):
        rng = np.random.default_rng(seed)
        found = view(data, rng)
        assert found.shape == (*size, 3)
    scaled = 0
    for whole, crop in decoded():
        if whole != (601, 834):
            scaled += 1
            assert crop[0] >= 2 * size[0] and crop[1] >= 2 * size[1]
    assert 0 < scaled < 25


@pytest.mark.skipif(decode.simplejpeg is None, reason="the slow road never scales")
def test_a_crop_decoded_small_looks_like_one_decoded_whole(monkeypatch):
    y, x = np.mgrid[:601, :834] / 834 * 255  # a slope shows if anything has moved
    data = saved(np.stack([x, y, 255 - x], -1).astype(np.uint8), "JPEG", quality=95)
    view = host_ops.decode_crop(24, (0.2, 1.0))
    crops = lambda: np.stack([view(data, np.random.default_rng(s)) for s in range(40)])
    small = crops().astype(int)
    monkeypatch.setattr(decode, "simplejpeg", None)
    gaps = small - crops()
    assert gaps.any()
    # Boxes go to the nearest pixel of the small picture, 8 or 2.4 levels wide at most.
    assert abs(gaps.mean(axis=(1, 2))).max() < 2.4
    assert abs(gaps.mean(axis=(0, 1, 2))).max() < 0.4


@pytest.mark.skipif(host_ops.cv2 is None, reason="needs OpenCV")
def test_without_antialias_it_still_is_the_same_picture():
    """Few pixels are looked at, but none is moved: smooth pictures stay the same."""
    y, x = np.mgrid[:64, :96]
    image = np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)
    exact = host_ops.resize(image, (16, 20), "bicubic", True).astype(int)
    quick = host_ops.resize(image, (16, 20), "bicubic", False).astype(int)
    assert abs(exact - quick)[1:-1, 1:-1].max() <= 1
    assert host_ops.resize(image[:, :, :1], (16, 20), "bilinear", False).shape[2] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_get_the_wanted_channels(channels):
    rng = np.random.default_rng(0)
    view = host_ops.decode(channels)
    mode = "L" if channels == 1 else "RGB"
    for image in (scene(5, 7), scene(5, 7, 1), scene(5, 7, 1)[:, :, 0]):
        pillow = Image.fromarray(image.squeeze()).convert(mode)
        found = view(image, rng)
        np.testing.assert_array_equal(found, np.asarray(pillow).reshape(5, 7, channels))
    clear = np.zeros((5, 7, 4), np.uint8)
    assert (view(clear, rng) == 255).all()  # on white, as in files
