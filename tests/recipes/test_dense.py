"""The recipes of segmentation and detection: rates, decays, lengths, as they are."""

import functools
import re

import jax
import numpy as np
import pytest

from mixjax import methods, models
from mixjax.config import recipes
from mixjax.data.scenes import Map, objects
from mixjax.data.views import parse
from mixjax.optim import optimizers, schedules
from mixjax.sharding.meshes import path_name
from mixjax.training.build import make_clock
from tests.support import tiny

VITS = {  # recipe -> blocks, decay of layers, weight decay
    "ade20k_uper_vitb": (12, 0.65, 0.05),
    "ade20k_uper_vitl": (24, 0.75, 0.05),
    "coco_vitdet_vitb": (12, 0.7, 0.1),
    "coco_cascade_vitl": (24, 0.75, 0.05),
    "coco_cascade_vitl:form=detectron2": (24, 0.75, 0.05),
}
C4 = ("voc_c4_r50", "coco_c4_r50:schedule=2x")


@functools.cache
def built(text):
    """(config, shapes of the parameters) of a recipe in its own size."""
    name, _, argument = text.partition(":")
    config = recipes.load(f"{tiny.ROOT}/configs/{name}.py:{argument}")
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=schedules.Clock(1, 1))
    side = config.model.encoder.image_size
    shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)
    targets = {k: shape(1) for k in ("map", "boxes", "masks")} | {"hw": shape(1, 2)}
    batch = {"views": (shape(1, *side, 3),), "targets": targets}
    return config, jax.eval_shape(method.init, jax.random.key(0), batch).params


def rates_and_decays(text):
    """{path: (multiplier of the rate, whether it decays)} as optim.make has them."""
    config, params = built(text)
    o = config.optim
    mask = optimizers.decay_mask(params, o.decay_vectors, o.decay_exempt)
    scales = jax.tree.map(lambda _: 1.0, params)
    if o.layer_decay != 1:
        scales = optimizers.layer_scales(params, o.layer_decay, o.layers)
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    values = zip(jax.tree.leaves(scales), jax.tree.leaves(mask), strict=True)
    return dict(zip(paths, values, strict=True))


@pytest.mark.parametrize("text", VITS)
def test_rates_fall_from_layer_to_layer(text, said):
    """As printed when a run starts: positions slowest, all that is new at full rate."""
    depth, decay, weight_decay = VITS[text]
    config, params = built(text)
    found = rates_and_decays(text)
    for name, (scale, _) in found.items():
        block = re.match(r"encoder/blocks_(\d+)/", name)
        layer = int(block[1]) + 1 if block else 0
        layer = layer if name.startswith("encoder/") else depth + 1
        assert scale == pytest.approx(decay ** (depth + 1 - layer)), name
    clock = make_clock(config, 1000)
    rate = schedules.make(config.schedule, batch=config.batch, clock=clock)
    said.clear()
    optimizers.make(config.optim, rate, params, clock=clock)
    rows = [line.split() for line in said[1:]]
    slowest, largest = f"{decay ** (depth + 1):.4g}", f"{weight_decay:.4g}"
    assert rows[0][0] == slowest and rows[-1][:2] == ["1", largest]
    assert {row[1] for row in rows} == {"0", largest}
    assert sum(int(row[2]) for row in rows) == len(jax.tree.leaves(params))


def test_what_segmentation_adds_to_a_block_is_of_its_layer():
    found = rates_and_decays("ade20k_uper_vitb")
    for name in ("attn/relative_bias", "gamma_1", "gamma_2"):
        assert found[f"encoder/blocks_4/{name}"][0] == pytest.approx(0.65**8)
    assert found["encoder/cls_token"][0] == pytest.approx(0.65**13)


def test_vitdet_decays_all_but_the_transformers_norms_and_positions():
    found = rates_and_decays("coco_vitdet_vitb")
    assert found["encoder/pos_embed"][0] == pytest.approx(0.00969, abs=5e-6)
    spared = {name for name, (_, decays) in found.items() if not decays}
    norms = [f"encoder/blocks_{i}/norm{j}" for i in range(12) for j in (1, 2)]
    norms = {f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")}
    assert spared == norms | {"encoder/pos_embed"}
    assert found["encoder/blocks_3/attn/rel_pos_h"] == (pytest.approx(0.7**9), True)


def test_upernet_spares_vectors_alone():
    found, (_, params) = rates_and_decays("ade20k_uper_vitb"), built("ade20k_uper_vitb")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        assert found[path_name(path)][1] == (leaf.ndim > 1)


@pytest.mark.parametrize("text", C4)
def test_c4_spares_its_norms(text):
    found = rates_and_decays(text)
    spared = {name for name, (_, decays) in found.items() if not decays}
    norm = lambda name: "bn" in name or name.startswith("res5/norm/")
    assert spared == {name for name in found if norm(name)}
    assert found["box_head/logits/bias"] == (1.0, True)


LENGTHS = {  # steps, batch; {step: share of the peak}
    "ade20k_uper_vitb": (160_000, 16, {0: 1e-6, 750: 0.4977, 80_000: 0.5}),
    "coco_vitdet_vitb": (
        184_375,
        64,
        {0: 1e-3, 125: 0.5005, 163_888: 1, 163_890: 0.1, 177_547: 0.01},
    ),
    "voc_c4_r50": (24_000, 16, {0: 1e-3, 100: 1, 17_999: 1, 18_000: 0.1, 22_000: 0.01}),
    "coco_c4_r50": (90_000, 16, {500: 0.5005, 59_999: 1, 60_000: 0.1, 80_000: 0.01}),
    "coco_c4_r50:schedule=2x": (180_000, 16, {119_999: 1, 120_000: 0.1, 160_000: 0.01}),
    "coco_cascade_vitl": (
        12 * 7329,
        16,
        {0: 1e-3, 250: 0.5005, 9 * 7329 - 1: 1, 9 * 7329: 0.1, 11 * 7329: 0.01},
    ),
}


@pytest.mark.parametrize("text", LENGTHS)
def test_lengths_and_rates_are_the_papers(text):
    config, _ = built(text)
    steps, batch, shares = LENGTHS[text]
    clock = make_clock(config, 117_266 // 16)
    assert (clock.total_steps, config.batch) == (steps, batch)
    rate = schedules.make(config.schedule, batch=batch, clock=clock)
    for step, share in shares.items():
        assert float(rate(step)) / rate.peak == pytest.approx(share, rel=2e-3), step


@pytest.mark.parametrize(
    "text, parts, side",
    [
        ("coco_vitdet_vitb:masks=0", {"rpn_head", "box_head"}, 1024),
        ("coco_vitdet_vitb:canvas=512", {"mask_head"}, 512),
        ("coco_vitdet_vitb:size=L", {"mask_head"}, 1024),
        ("coco_cascade_vitl:size=B", {"mask_head_3"}, 1344),
        ("coco_cascade_vitl:form=detectron2", {"mask_head", "box_head_3"}, 1344),
        ("ade20k_uper_vitb:bias=0", {"uper_head"}, 512),
        ("ade20k_uper_vitl:size=B,decay=.65", {"uper_head"}, 512),
        ("coco_c4_r50:schedule=2x", {"mask_head", "res5"}, 1344),
    ],
)
def test_variants_build(text, parts, side):
    """Views, data and network are of one size, with masks or without."""
    config, params = built(text)
    assert parts <= params.keys() and ("masks=0" not in text or len(params) == 4)
    for view in (*config.data.views, config.data.eval_view):
        parse(view, "view")
    picture = np.zeros((40, 60, 3), np.uint8)
    known = objects(1, 40, 60, [((5, 5, 30, 30), 0, False, False, 625.0, SQUARE)], True)
    if config.method.name == "segment":
        known = Map(np.zeros((40, 60), np.uint8), "a")
    rng = np.random.default_rng(0)
    image, targets = parse(config.data.views[0], "view").scene(picture, known, rng)
    assert image.shape == (side, side, 3)
    assert ("masks" in targets) == ("mask_head" in params)


SQUARE = [np.array([5.0, 5, 30, 5, 30, 30, 5, 30])]
