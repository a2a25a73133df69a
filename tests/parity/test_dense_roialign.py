"""RoIAlign against numbers derived in float64, and away from the usual mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax.dense.roi_align import roi_align, roi_align_dense

WRONG = ["adaptive", "zero_padded", "sampling1"]


@pytest.fixture
def ref(reference):
    return reference("dense_roialign")


def by_gather(ref, side):
    """boxes of one image and its map [C, h, w] -> [R, C, side, side]."""
    stride, samples = 1 / ref["hp/spatial_scale"], ref["hp/sampling_ratio"]

    def run(feature, boxes):
        maps = (feature.transpose(1, 2, 0)[None],)
        level = jnp.zeros((1, len(boxes)), jnp.int32)
        found = roi_align(
            maps, (stride,), boxes[None], level, side=side, samples=samples
        )
        return found[0].transpose(0, 3, 1, 2)

    return run


def by_products(ref, side):
    stride, samples = 1 / ref["hp/spatial_scale"], ref["hp/sampling_ratio"]

    def run(feature, boxes):
        feature = feature.transpose(1, 2, 0)
        found = roi_align_dense(feature, stride, boxes, side=side, samples=samples)
        return found.transpose(0, 3, 1, 2)

    return run


FORMS = pytest.mark.parametrize("form", [by_gather, by_products])


@FORMS
@pytest.mark.parametrize("side", [7, 14])
def test_one_map(ref, form, side):
    found = jax.jit(form(ref, side))(ref["in/feature"], ref["in/boxes"])
    ref.check(f"aligned{side}", found)


@FORMS
def test_gradient(ref, form):
    value = lambda f: (form(ref, 7)(f, ref["in/boxes"]) * ref["in/cotangent7"]).sum()
    ref.check("grad_feature7", jax.jit(jax.grad(value))(ref["in/feature"]))


@FORMS
def test_usual_mistakes_are_further_away_than_the_tolerance(ref, form):
    found = jax.jit(form(ref, 7))(ref["in/feature"], ref["in/boxes"])
    for wrong in ["unaligned7", *(f"aligned7_{name}" for name in WRONG)]:
        error = np.abs(found - ref[f"out/{wrong}"]).max()
        assert error > 1000 * ref["tol/aligned7"], wrong


def test_levels(ref):
    names = sorted(k for k in ref.arrays if k.startswith("in/map_p"))
    maps = tuple(ref[name].transpose(1, 2, 0)[None] for name in names)
    strides = [2 ** int(name[-1]) for name in names]
    boxes, level = ref["in/multilevel_boxes"], ref["out/multilevel_index"]
    how = {"side": 7, "samples": ref["hp/sampling_ratio"]}
    run = jax.jit(lambda *a: roi_align(a[0], strides, *a[1:], **how))
    # A second image that shows something else, and whose boxes are in another order.
    both = tuple(np.concatenate([m, -m]) for m in maps)
    found = run(both, np.stack([boxes, boxes[::-1]]), np.stack([level, level[::-1]]))
    found = found.transpose(0, 1, 4, 2, 3)
    ref.check("multilevel7", found[0])
    ref.check("multilevel7", -found[1, ::-1])
