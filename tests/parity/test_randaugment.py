"""RandAugment: timm's arguments, and every operation against Pillow's bytes."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mixjax.data import affine_ops, randaugment

from .conftest import FOLDER

NAMES = randaugment.NAMES
SIGNS = {"positive_sign": [1.0], "negative_sign": [-1.0], "value": [1.0, -1.0]}


@pytest.fixture(scope="module")
def tables():
    """The increasing tables, of each version of timm."""
    whole = json.loads((FOLDER / "randaugment.json").read_text())
    versions = [v for k, v in whole.items() if k.startswith("timm")]
    found = [(v, t) for v in versions for t in v["tables"] if "inc1" in t["config"]]
    assert found
    return found


def ours(name):
    """ "PosterizeIncreasing" -> "Posterize"."""
    return name.removesuffix("Increasing").removesuffix("Rel")


def test_operations_and_their_chances(tables):
    """In timm's order, and the defaults are those of its name of the policy."""
    signature = inspect.signature(randaugment.randaugment)
    default = {k: p.default for k, p in signature.parameters.items()}
    for version, table in tables:
        assert tuple(ours(op["name"]) for op in table["ops"]) == NAMES
        assert table["replace"] and not table["choice_weights"]
        for op in table["ops"]:
            assert default == {
                "magnitude": op["magnitude"],
                "noise": op["magnitude_std"],
                "ops": table["num_layers"],
                "p": op["prob"],
            }
            assert randaugment.MAX_MAGNITUDE == op["magnitude_max"]
        assert list(randaugment.FILL) == version["hparams"]["img_mean"]


def test_arguments(tables):
    given = jax.jit(randaugment.operation_argument)
    count = 0
    for _, table in tables:
        for which, op in enumerate(table["ops"]):
            for magnitude, by_sign in op["args"].items():
                for key, value in by_sign.items():
                    for sign in SIGNS[key] if value is not None else []:
                        found = given(which, float(magnitude), sign)
                        np.testing.assert_allclose(found, value[0], rtol=1e-6)
                        count += 1
    assert count > 200


# --- operations --------------------------------------------------------------------


def transformed(image, matrix):
    how = {"resample": Image.BICUBIC, "fillcolor": randaugment.FILL}
    return image.transform(image.size, Image.AFFINE, matrix, **how)


def posterize(image, value):
    """With no bits, which newer Pillows refuse, all is black."""
    return ImageOps.posterize(image, int(value)) if value else image.point(lambda i: 0)


def solarize_add(image, value):
    table = [min(255, i + int(value)) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


PILLOW = {
    "AutoContrast": lambda image, v: ImageOps.autocontrast(image),
    "Equalize": lambda image, v: ImageOps.equalize(image),
    "Invert": lambda image, v: ImageOps.invert(image),
    "Rotate": lambda image, v: image.rotate(
        v, resample=Image.BICUBIC, fillcolor=randaugment.FILL
    ),
    "Posterize": posterize,
    "Solarize": lambda image, v: ImageOps.solarize(image, int(v)),
    "SolarizeAdd": solarize_add,
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "ShearX": lambda image, v: transformed(image, (1, v, 0, 0, 1, 0)),
    "ShearY": lambda image, v: transformed(image, (1, 0, 0, v, 1, 0)),
    "TranslateX": lambda image, v: transformed(
        image, (1, 0, v * image.size[0], 0, 1, 0)
    ),
    "TranslateY": lambda image, v: transformed(
        image, (1, 0, 0, 0, 1, v * image.size[1])
    ),
}
MAGNITUDES = [
    (m, sign) for m in (0.0, 4.5, 8.5, 9.0, 9.5, 10.0) for sign in (1.0, -1.0)
]


def synthetic():
    """A gradient with noise of several strengths, and flat parts; not square."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:61, :84]
    image = np.stack([x * 3, y * 4, (x + y) * 1.7], axis=2)
    image = image + rng.normal(size=image.shape) * (x[:, :, None] / 2)
    image[:12, :20], image[40:50, :15] = 255, 3
    return image.clip(20, 240).astype(np.uint8)


def photographs(shared):
    paths = sorted((shared / "data/coco_sample/images").glob("*.jpg"))[2:4]
    for path in paths:
        with Image.open(path) as image:
            yield np.asarray(image.convert("RGB").resize((224, 200)))


def border(which, value, height, width):
    """Pixels of which it is a matter of rounding whether they come from outside."""
    a, b, c, d, e, f = np.asarray(
        randaugment.geometric_matrix(which, value, height, width)
    )
    y, x = np.mgrid[:height, :width] + 0.5
    at_x, at_y = a * x + b * y + c, d * x + e * y + f
    near = lambda at, size: np.minimum(abs(at), abs(at - size)) < 1e-3
    return near(at_x, width) | near(at_y, height)


change = jax.jit(randaugment.apply_operation)


def compare(name, image):
    """Every magnitude: no level further than one, but for a warp's border."""
    which = NAMES.index(name)
    for magnitude, sign in MAGNITUDES:
        value = randaugment.operation_argument(which, magnitude, sign)
        found = np.asarray(change(image.astype(np.float32), which, value))
        wanted = PILLOW[name](Image.fromarray(image), round(float(value), 6))
        wanted = np.asarray(wanted).astype(int)
        apart = abs(found - wanted)
        apart[border(which, float(value), *image.shape[:2])] = 0
        assert apart.max() <= 1, (name, magnitude, sign, apart.max())
        assert apart.mean() <= 0.02, (name, magnitude, sign, apart.mean())
        np.testing.assert_array_equal(found, found.round())


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_pillows(name):
    compare(name, synthetic())


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_pillows_on_photographs(name, shared):
    for image in photographs(shared):
        compare(name, image)


def test_what_the_operations_are_of_one_level():
    """No range to stretch, no histogram to flatten: as Pillow leaves them."""
    for level in (0, 77, 255):
        for name in ("AutoContrast", "Equalize"):
            compare(name, np.full((5, 7, 3), level, np.uint8))


def test_no_operation_changes_nothing():
    image = synthetic().astype(np.float32)
    for value in (0.0, 27.0, -0.3):
        np.testing.assert_array_equal(change(image, -1, value), image)


def test_one_matrix_does_for_all_geometry():
    """That of an operation which is not geometric is the identity."""
    same = np.asarray(affine_ops.translation(0.0, 0.0))
    for which, name in enumerate(NAMES):
        found = randaugment.geometric_matrix(jnp.array(which), 0.3, 9, 8)
        geometric = name.startswith(("Rotate", "Shear", "Translate"))
        assert (abs(np.asarray(found) - same).max() > 1e-4) == geometric
