"""Augmentation operations against Pillow's bytes, on real pictures."""

import jax
import numpy as np
import pytest

from mixjax.data import affine_ops, blur_ops, color_ops, device_ops, jitter

FILE = "augment_ops"
KEY = jax.random.key(0)  # for operations of chance that are certain here


def mapped(op, images):
    """op(image [H, W, C]) under jit over a batch of bytes -> floats in 0..1."""
    run = jax.jit(jax.vmap(op))
    return run(images.astype(np.float32) / 255)


def check(ref, key, found):
    """The largest and the mean difference in whole levels."""
    found = np.floor(np.clip(np.asarray(found), 0, 1) * 255 + 0.5)
    ref.check(key, found)
    mean = abs(found - ref[f"out/{key}"]).mean()
    assert mean <= ref[f"tol_mean/{key}"], f"{key}: {mean} on average"


def check_each(ref, name, op):
    """op(image, setting) for each setting of hp/<name>, traced as float32."""
    for i, setting in enumerate(ref[f"hp/{name}"]):
        setting = setting.astype(np.float32 if setting.dtype.kind == "f" else np.int32)
        found = jax.jit(jax.vmap(op, in_axes=(0, None)))(
            ref["in/images"].astype(np.float32) / 255, setting
        )
        check(ref, f"{name}/{i}", found)


COLORS = ("brightness", "contrast", "saturation", "hue", "solarize", "posterize")


@pytest.mark.parametrize("name", COLORS)
def test_colors(reference, name):
    check_each(reference(FILE), name, getattr(color_ops, name))


def test_solarize_add(reference):
    ref = reference(FILE)
    threshold = ref["hp/solarize_add_threshold"]
    add = lambda image, amount: color_ops.solarize_add(image, amount, threshold)
    check_each(ref, "solarize_add", add)


def test_sharpness(reference):
    check_each(reference(FILE), "sharpness", blur_ops.sharpness)


@pytest.mark.parametrize("name", ["grayscale", "equalize", "autocontrast", "invert"])
def test_colors_without_a_setting(reference, name):
    ref = reference(FILE)
    check(ref, name, mapped(getattr(color_ops, name), ref["in/images"]))


def test_view_operations_that_are_certain(reference):
    ref = reference(FILE)
    ops = {"horizontal_flip": device_ops.flip(1), "grayscale": jitter.gray(1)}
    for i, threshold in enumerate(ref["hp/solarize"].tolist()):
        ops[f"solarize/{i}"] = jitter.solarize(threshold)
    for key, op in ops.items():
        check(ref, key, mapped(lambda image, op=op: op(KEY, image), ref["in/images"]))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_of_one_kind(reference, name):
    """In any order, the other three by nothing."""
    ref = reference(FILE)
    kinds = ("brightness", "contrast", "saturation")
    for place in range(4):
        ranks = np.roll(np.arange(4), place)
        for i, setting in enumerate(ref[f"hp/{name}"].astype(np.float32)):
            factors = np.where(np.array(kinds) == name, setting, np.float32(1))
            shift = setting if name == "hue" else np.float32(0)
            op = lambda image: jitter.apply_in_order(image, ranks, factors, shift)  # noqa: B023
            check(ref, f"{name}/{i}", mapped(op, ref["in/images"]))


def test_blur(reference):
    ref = reference(FILE)
    most = ref["hp/gaussian_sigma"].max()
    for i, sigma in enumerate(ref["hp/gaussian_sigma"].tolist()):
        # Sure of its sigma as a view, or one of many as a function.
        op = blur_ops.blur(sigma=(sigma, sigma))
        found = mapped(lambda image, op=op: op(KEY, image), ref["in/images"])
        check(ref, f"gaussian_blur/{i}", found)
        for kind, key in (("pillow", "blur"), ("gaussian", "exact")):
            blur = blur_ops.KINDS[kind]
            op = lambda image, s=sigma, b=blur: b(image, s, most)
            found = mapped(op, ref["in/images"])
            if kind == "pillow":
                check(ref, f"gaussian_blur/{i}", found)
            else:
                ref.check(f"gaussian_{key}/{i}", found * 255)


def crops(ref):
    boxes = ref["hp/crop_boxes_top_left_height_width"]
    for s, size in enumerate(ref["hp/crop_sizes"].tolist()):
        for filter in device_ops.KERNELS:
            for b, box in enumerate(boxes.astype(np.float32)):
                yield f"resized_crop/size{s}/{filter}/{b}", (size, size), filter, box


def test_resized_crop(reference):
    ref = reference(FILE)
    for key, size, filter, box in crops(ref):
        op = lambda image: device_ops.resize_box(image, box, size, filter)  # noqa: B023
        check(ref, key, mapped(op, ref["in/images"]))


AFFINE = {
    "rotate": "rotate_degrees",
    "shear_x": "shear_factor",
    "shear_y": "shear_factor",
    "translate_x": "translate_fraction",
    "translate_y": "translate_fraction",
}


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("filter", affine_ops.KERNELS)
def test_affine(reference, name, filter):
    ref = reference(FILE)
    fill = tuple((ref["hp/fill_color"] / 255).tolist())
    change = getattr(affine_ops, name)
    for i, setting in enumerate(ref[f"hp/{AFFINE[name]}"].astype(np.float32)):
        op = lambda image, s=setting: change(image, s, filter=filter, fill=fill)
        check(ref, f"{name}/{filter}/{i}", mapped(op, ref["in/images"]))


def test_nothing_in_the_file_is_left_out(reference):
    ref = reference(FILE)
    plain = {"grayscale", "horizontal_flip", "equalize", "autocontrast", "invert"}
    listed = (*COLORS, "solarize_add", "sharpness")
    wanted = plain | {f"{n}/{i}" for n in listed for i in range(len(ref[f"hp/{n}"]))}
    blurs = range(len(ref["hp/gaussian_sigma"]))
    wanted |= {f"gaussian_{k}/{i}" for k in ("blur", "exact") for i in blurs}
    wanted |= {key for key, *_ in crops(ref)}
    for name, setting in AFFINE.items():
        each = range(len(ref[f"hp/{setting}"]))
        wanted |= {f"{name}/{f}/{i}" for f in affine_ops.KERNELS for i in each}
    assert set(ref.part("out")) == wanted
