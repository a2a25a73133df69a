"""Recipes of siamese methods: their variants, the papers' rows, rates and weights."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import methods, mixtures, models
from mixjax.config import recipes
from mixjax.config.registry import names
from mixjax.errors import UsageError
from mixjax.objectives.mixing import Pairing
from mixjax.optim import optimizers, schedules
from mixjax.optim.schedules import Clock
from mixjax.state import TrainState
from mixjax.training import build
from tests.support import tiny

CONFIGS = tiny.ROOT / "configs"
EXAMPLES = {
    "c10": 50_000,
    "c100": 50_000,
    "stl": 105_000,
    "tiny": 100_000,
    "in1k": 1_281_167,
}
RECIPES = sorted(
    p.stem
    for p in CONFIGS.glob("*.py")
    if p.stem.partition("_")[0] in EXAMPLES
    and not ("_lam_" in p.stem or p.stem.endswith("_multiscale"))
)
MIXTURES = {"mixture=none": set(), "mixture=both": {"unmix", "mixmask"}}
MIXTURES |= {mixtures.variant(name): {name} for name in names("mixjax.mixtures")}


def load(text, *flags):
    """The configuration of "FILE:VARIANTS", and of what is set after it."""
    name, colon, variants = text.partition(":")
    name = name.removesuffix(".py")
    return recipes.read([f"--config={CONFIGS}/{name}.py{colon}{variants}", *flags])[0]


def schedule_of(text):
    """(rate by step, steps of an epoch, configuration) of a recipe."""
    config = load(text)
    steps = EXAMPLES[text.partition("_")[0]] // config.batch
    clock = build.make_clock(config, steps)
    rate = schedules.make(config.schedule, batch=config.batch, clock=clock)
    return rate, steps, config


def check(rate, points):
    found = jax.jit(rate.at)(jnp.array(list(points)))
    np.testing.assert_allclose(found, list(points.values()), rtol=1e-5, atol=1e-9)


# --- rates ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, peak, epochs, steps",
    [
        ("c10_simclr", 3e-3, 1000, 97),
        ("c100_byol", 3e-3, 1000, 97),
        ("c10_wmse:views=4", 3e-3, 1000, 195),
        ("stl_simclr", 2e-3, 2000, 205),
        ("tiny_byol:mixture=unmix", 2e-3, 1000, 195),
        ("tiny_wmse:views=4,epochs=200", 2e-3, 200, 390),
    ],
)
def test_adam_warms_up_in_500_steps_and_drops_twice_near_the_end(
    text, peak, epochs, steps
):
    rate, per_epoch, config = schedule_of(text)
    assert per_epoch == steps and config.epochs == epochs
    points = {0: peak / 500, 1: peak / 250, 498: 0.998 * peak}
    points |= {499: peak, 500: peak, 501: peak}
    points[steps] = peak * (steps + 1) / 500  # the beginning of epoch 1
    for epoch, before, after in ((50, peak, 0.2 * peak), (25, 0.2 * peak, 0.04 * peak)):
        first = (epochs - epoch) * steps
        points |= {first - 1: before, first: after}
    points[epochs * steps - 1] = 0.04 * peak
    check(rate, points)


@pytest.mark.parametrize("text", ["c10_moco", "c100_moco:symmetric=1", "tiny_moco"])
def test_moco_of_small_sets_counts_epochs_from_one(text):
    rate, steps, config = schedule_of(f"{text}{',' if ':' in text else ':'}epochs=200")
    cosine = lambda epoch: 0.06 * 0.5 * (1 + np.cos(np.pi * epoch / 200))
    points = {0: cosine(1), steps - 1: cosine(1), steps: cosine(2)}
    points |= {149 * steps: cosine(150), 174 * steps + 5: cosine(175)}
    check(rate, points)
    last = jax.jit(rate.at)(jnp.arange(199 * steps, 200 * steps))
    assert (last == 0).all() and rate(199 * steps - 1) > 0


def test_moco_of_imagenet_counts_epochs_from_zero():
    rate, steps, _ = schedule_of("in1k_mocov2")
    last = 0.03 * 0.5 * (1 + np.cos(np.pi * 199 / 200))
    check(rate, {0: 0.03, steps - 1: 0.03, 100 * steps: 0.015, 200 * steps - 1: last})
    rate, steps, _ = schedule_of("in1k_mocov1")
    assert steps == 5004
    points = {0: 0.03, 120 * steps - 1: 0.03, 120 * steps: 3e-3}
    check(rate, points | {160 * steps - 1: 3e-3, 160 * steps: 3e-4})


def test_swav_counts_steps():
    rate, steps, _ = schedule_of("c10_swav")
    fall = lambda share: 6e-4 + 0.5994 * 0.5 * (1 + np.cos(np.pi * share))
    points = {0: 0, 974: 0.6 * 974 / 1949, 5 * 390 - 1: 0.6, 5 * 390: 0.6}
    points |= {100 * 390: fall(95 / 195), 200 * 390 - 1: fall(1 - 1 / (195 * 390))}
    assert steps == 390
    check(rate, points)
    rate, steps, _ = schedule_of("in1k_swav")
    check(rate, {0: 0.6, 100 * steps: fall(0.5), 200 * steps - 1: 6e-4})


def test_simsiam_warms_up_ten_epochs_and_falls_in_steps():
    rate, steps, _ = schedule_of("c100_simsiam")
    fall = lambda share: 0.06 * 0.5 * (1 + np.cos(np.pi * share))
    points = {0: 0, 10 * steps - 1: 0.06, 10 * steps: 0.06}
    check(rate, points | {505 * steps + 48: fall((495 + 48 / 97) / 990)})


# --- optimizers ----------------------------------------------------------------------

PARAMS = {
    "encoder": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])},
    "projector": {"scale": jnp.array([1.0, -1.0]), "bias": jnp.array([0.25, -4.0])},
    "predictor": {"kernel": jnp.array([[1.0, -1.0]])},
    "prototypes": {"kernel": jnp.array([[0.6, 1.0], [0.8, 0.0]])},
}


def first_update(text, gradient):
    """(what one step from the start adds to PARAMS, rate of the step, config)."""
    rate, steps, config = schedule_of(text)
    clock = build.make_clock(config, steps)
    optimizer = optimizers.make(config.optim, rate, PARAMS, clock=clock)
    grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    return updates, float(rate(0)), config


@pytest.mark.parametrize("text", ["c10_simclr", "stl_byol", "tiny_wmse"])
def test_decay_goes_through_adam(text):
    """Without a gradient: rate x sign, where AdamW would move by rate x decay x p."""
    updates, rate, config = first_update(text, 0.0)
    assert config.optim.weight_decay == 1e-6
    move = lambda u, p: np.testing.assert_allclose(u, -rate * np.sign(p), rtol=0.05)
    jax.tree.map(move, updates, PARAMS)


@pytest.mark.parametrize(
    "text, decay", [("c10_moco", 5e-4), ("in1k_mocov2", 1e-4), ("in1k_simsiam", 1e-4)]
)
def test_sgd_decays_norms_and_biases_too(text, decay):
    updates, rate, _ = first_update(text, 0.0)
    shrink = lambda u, p: np.testing.assert_allclose(u, -rate * decay * p, rtol=1e-5)
    jax.tree.map(shrink, updates, PARAMS)


def test_the_predictor_of_simsiam_keeps_its_rate():
    updates, rate, _ = first_update("c100_simsiam", 1.0)
    assert rate == 0 and not np.any(updates["encoder"]["kernel"])
    step = -0.06 * (1 + 5e-4 * PARAMS["predictor"]["kernel"])
    np.testing.assert_allclose(updates["predictor"]["kernel"], step, rtol=1e-5)


@pytest.mark.parametrize("text, steps", [("c10_swav", 390), ("in1k_swav", 5004)])
def test_prototypes_of_swav_wait_5005_steps(text, steps):
    updates, _, config = first_update(text, 1.0)
    assert not np.any(np.abs(updates["prototypes"]["kernel"]) > 1e-6)
    ((_, epochs),) = config.optim.freeze_rules
    assert Clock(200 * steps, steps).steps(epochs) == 5005


# --- what a recipe says --------------------------------------------------------------


@pytest.mark.parametrize(
    "text, clean, mixed",
    [
        ("c10_moco", 1 * [1], 1 * [1]),
        ("c10_moco:symmetric=1", 2 * [1], 2 * [1]),
        ("tiny_moco", 2 * [1], 2 * [1]),
        ("in1k_mocov2", 1 * [1], 1 * [1]),
        ("c10_simclr", 2 * [1 / 2], 2 * [1 / 2]),
        ("c10_byol", 2 * [1], 2 * [1]),
        ("c100_simsiam", 2 * [1 / 2], 2 * [1 / 2]),
        ("in1k_simsiam", 2 * [1 / 2], 2 * [1 / 2]),
        ("c10_wmse", 1 * [1], 1 * [1]),
        ("c10_wmse:views=4", 6 * [1 / 6], 1 * [1]),
        ("c10_swav", 2 * [1 / 2], 2 * [1 / 2]),
        ("in1k_swav", 14 * [1 / 14], 2 * [1 / 2]),
    ],
)
def test_weights_of_comparisons(text, clean, mixed):
    """Sums of directions for MoCo and BYOL, means for the rest, mixtures likewise."""
    config = load(text)
    pairing, views = Pairing(**config.method.pairing), len(config.data.views)
    first, second = pairing.calls(views, 1)
    assert len(first) * [pairing.share(views)] == pytest.approx(clean)
    assert len(second) * [pairing.share(2)] == pytest.approx(mixed)


@pytest.mark.parametrize("name", RECIPES)
def test_what_evaluators_read_and_whose_statistics_norms_take(name):
    """MoCo on small sets by 200 neighbours of its 128 numbers, HTDT's by plain 5."""
    config = load(name)
    base, _, method = name.partition("_")
    small_moco = method == "moco"
    assert config.method.evaluate == ("projection" if small_moco else "features")
    knn = config.evals.knn
    if base != "in1k":
        plain = config.optim.name == "adam"  # in HTDT's frame
        wanted = ("majority", 5) if plain else ("weighted", 200)
        assert (knn.vote, knn.k) == wanted
        assert plain or knn.temperature == 0.1
    assert config.model.norm.groups == (8 if "moco" in method else 1)
    assert config.method.shuffle == ("moco" in method)
    assert bool(config.method.teacher) == ("moco" in method or method == "byol")


HTDT = "jitter(.4, .4, .4, .1, p=.8) | gray(.1) | crop({}, scale=(.2, 1)) | flip"
SMALL = "crop({}, scale={}, filter='bilinear') | flip | jitter(.4, .4, .4, .1, p=.8)"
C10 = "normalize((.4914, .4822, .4465), (.2023, .1994, .2010))"
C100 = "normalize((.5071, .4867, .4408), (.2675, .2565, .2761))"
STL = "normalize((.43, .42, .39), (.27, .26, .27))"
TINY = "normalize((.480, .448, .398), (.277, .269, .282))"


@pytest.mark.parametrize(
    "name, work, stats",
    [
        ("c10_simclr", HTDT.format(32), C10),
        ("c100_wmse", HTDT.format(32), C100),
        ("stl_byol", HTDT.format(64), STL),
        ("tiny_simclr", HTDT.format(64), TINY),
        ("c10_moco", SMALL.format(32, "(.08, 1)") + " | gray(.2)", C10),
        ("c100_moco", SMALL.format(32, "(.08, 1)") + " | gray(.2)", C10),
        ("tiny_moco", SMALL.format(64, "(.08, 1)") + " | gray(.2)", TINY),
        ("c100_simsiam", SMALL.format(32, "(.2, 1)") + " | gray(.2)", "normalize"),
        ("c100_swav", SMALL.format(32, "(.14, 1)") + " | gray(.2)", C10),
    ],
)
def test_views_of_small_sets(name, work, stats):
    """Order, parameters and statistics of each code base."""
    data = load(name).data
    resize = "resize(70) | center(64) | " if name.startswith("stl") else ""
    assert set(data.views) == {f"decode | {work} | {stats}"}
    assert data.eval_view == f"decode | {resize}{stats}"


# --- variants ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_mixture_goes_with_every_recipe(name):
    for mixture, sections in MIXTURES.items():
        for branches in ("one", "both"):
            config = load(f"{name}:{mixture},branches={branches}")
            assert set(mixtures.make(config.method.mixtures)) == sections
            assert config.method.pairing.branches == branches


@pytest.mark.parametrize(
    "name, probability, grid, kind, groups, shared",
    [
        ("c100_moco", 0.5, 2, "discrete", 1, False),
        ("tiny_byol", 0.5, 4, "block", 1, False),
        ("in1k_mocov2", 0.0, 8, "block", 8, False),
        ("in1k_swav", 0.0, 8, "block", 8, True),
    ],
)
def test_settings_of_mixtures(name, probability, grid, kind, groups, shared):
    unmix = load(f"{name}:mixture=unmix").method.mixtures.unmix
    assert unmix.probability == probability and unmix.permutation == "reverse"
    mask = load(f"{name}:mixture=mixmask").method.mixtures.mixmask
    assert (mask.grid, mask.kind, mask.ratio) == (grid, kind, 0.5)
    assert mask.permutation == "reverse"
    both = load(f"{name}:mixture=both").method.mixtures
    assert both.unmix.probability == 0.5 and both.mixmask.permutation == "random"
    for section in (unmix, mask, both.unmix, both.mixmask):
        assert (section.groups, section.shared) == (groups, shared)


def test_the_baseline_of_lam_is_moco_with_cutmix_and_bicubic_crops():
    config, moco = load("c10_lam_cutmix"), load("c10_moco:mixture=unmix")
    assert config.method.mixtures.unmix.probability == 0
    config.method.mixtures.unmix.probability = 0.5
    assert config.method == moco.method and config.optim == moco.optim
    assert config.data.views[0].replace("bicubic", "bilinear") == moco.data.views[0]
    assert config.data.views != moco.data.views


NEW = """
import jax.numpy as jnp
from mixjax.mixtures import pairs

PAPER = {"share": 0.25}

def make(*, share: float, permutation: str, shared: bool, groups: int):
    pairs.check(permutation, groups)

    def mixture(rng, images):
        partner = jnp.arange(len(images) // groups)[None, ::-1].repeat(groups, 0)
        lam = jnp.full(groups, share)
        mask = jnp.full((groups, *images.shape[1:3]), share)
        return (pairs.mix(images, lam, mask, partner, permutation),)

    return mixture
"""


@pytest.fixture
def new_mixture(tmp_path, monkeypatch):
    """The folder of mixtures with one more file, and nothing else changed."""
    (tmp_path / "brand_new.py").write_text(NEW)
    folders = [*mixtures.__path__, str(tmp_path)]
    monkeypatch.setattr(mixtures, "__path__", folders)
    monkeypatch.setattr(mixtures.__spec__, "submodule_search_locations", folders)
    yield "brand_new"
    sys.modules.pop("mixjax.mixtures.brand_new", None)


@pytest.mark.parametrize("recipe", ["c10_moco", "in1k_swav", "finetune_cifar"])
def test_a_new_file_is_a_mixture_of_every_recipe(new_mixture, recipe):
    """With the fields that it has beside the common ones, which have no defaults."""
    wanted = mixtures.variant(new_mixture)
    assert wanted == "mixture=brand_new,mixture.share=0.25"
    method = load(f"{recipe}:{wanted}").method
    section = method.mixture if "mixture" in method else method.mixtures.brand_new
    groups, shared = (8, True) if recipe == "in1k_swav" else (1, False)
    fields = dict(name="brand_new", permutation="reverse", share=0.25)
    assert section.to_dict() == fields | dict(groups=groups, shared=shared)
    mixtures.make_one("mixture", section)
    for name in ("brand_new", "brand_nev"):
        method = load(f"{recipe}:mixture={name}").method
        sections = method.get("mixtures") or {"a": method.mixture}
        with pytest.raises(UsageError, match="share is missing|mean 'brand_new'"):
            mixtures.make(sections)


SMALL_ENCODERS = {
    "vit": "encoder.width=8,encoder.depth=1,encoder.heads=2",
    "beit": "encoder.width=8,encoder.depth=1,encoder.heads=2",
    "swin": "encoder.width=8,encoder.depths=1-1,encoder.heads=1-2",
    "resnet": "encoder.layers=1-1,encoder.widths=8-8",
}


@pytest.mark.parametrize("name", SMALL_ENCODERS)
@pytest.mark.parametrize("recipe", ["c10_moco", "c10_swav", "tiny_byol"])
def test_a_recipe_on_another_backbone_builds(recipe, name):
    """Views, projector, teacher, joined heads and the optimizer's rules fit it."""
    fields = SMALL_ENCODERS[name]
    config = load(f"{recipe}:mixture=unmix,encoder={name},{fields}")
    assert config.model.encoder.name == name
    assert config.model.encoder.image_size == load(recipe).model.encoder.image_size
    sides = [config.model.encoder.image_size[0]] * len(config.data.views)
    model, method = config.model.to_dict(), config.method.to_dict()
    builds(json.dumps([sides, config.batch, model, method]))
    network = models.make(config.model)
    side = sides[0]
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    init = methods.make(config.method, network, clock=Clock(10, 10)).init
    batch = {"views": (image, image)}
    params = jax.eval_shape(init, jax.random.key(0), batch).params
    optimizers.make(config.optim, lambda step: 0.0, params, clock=Clock(10, 10))


def test_fields_of_a_recipes_own_backbone_are_variants():
    encoder = load(
        "c10_moco:encoder.widths=8-8-16-16,encoder.remat=blocks"
    ).model.encoder
    assert (encoder.name, encoder.widths) == ("resnet", (8, 8, 16, 16))
    with pytest.raises(UsageError, match="model.encoder.name 'resnt' .* 'resnet'"):
        models.make(load("c10_moco:encoder=resnt").model)
    with pytest.raises(UsageError, match="model.encoder.wdth is not a field"):
        models.make(load("c10_moco:encoder=vit,encoder.wdth=3").model)


def test_a_ratio_may_be_drawn():
    ratio = lambda text: load(f"c10_moco:mixture=mixmask,{text}").method.mixtures
    assert ratio("ratio=.25").mixmask.ratio == 0.25
    assert ratio("ratio=.25-.75").mixmask.ratio == (0.25, 0.75)
    assert ratio("ratio=0-1").mixmask.ratio == (0.0, 1.0)


@pytest.mark.parametrize(
    "variants, message",
    [
        ("mixture=unmx", r"mixtures\.unmx\.name 'unmx' .* did you mean 'unmix'"),
        ("mixture=maskmix", r"'maskmix' does not exist; did you mean .*'mixmask'"),
        ("mixture=pairs", r"mixtures\.pairs\.name 'pairs' does not exist"),
        ("mixture=both,mixture.gamma=2", "mixture=both has no fields"),
        ("mixture=unmix,mixture.gama=2", r"unmix\.gama is not a field.* 'gamma'"),
        ("mixture=unmix,unmix.gamma=2", "'unmix.gamma' is unknown; there is "),
        ("mixtures=unmix", "'mixtures' is unknown; there is mixture"),
        ("branches=boht", "branches=boht is unknown; there is both"),
        ("symetric=1", "'symetric' is unknown; there is symmetric"),
        ("mixture=mixmask,ratio=half", "ratio=half: write a share"),
    ],
)
def test_unknown_variants_are_refused(variants, message):
    with pytest.raises(UsageError, match=message):
        mixtures.make(load(f"c10_moco:{variants}").method.mixtures)


# --- the papers' rows ----------------------------------------------------------------


def rows():
    """Every command of configs/README.md with a siamese recipe."""
    text = (CONFIGS / "README.md").read_text()
    found = re.findall(r"`(\w+\.py(?::[^`\s]*)?)((?: --config\.\S+)*)`", text)
    return sorted({row for row in found if row[0].partition("_")[0] in EXAMPLES})


@pytest.mark.parametrize("file, flags", rows())
def test_every_row_of_the_tables_builds(file, flags):
    config = load(file, *flags.split())
    sides = [int(re.search(r"crop\((\d+)", v)[1]) for v in config.data.views]
    method = config.method.to_dict()
    builds(json.dumps([sides, config.batch, narrow(config.model), method]))


def narrow(section):
    """A model of one thin block: test_every_recipe.py builds the real ones."""
    model = section.to_dict()
    model["encoder"] |= {"layers": (1,), "widths": (8,), "stem": "cifar"}
    for head in {"projector", "predictor"} & set(model):
        model[head]["widths"] = (8,) * len(model[head]["widths"])
    if "region_projector" in model:
        model["region_projector"]["width"] = 8
    return model


@functools.cache
def builds(text):
    """Traces a loss, on shapes; many rows differ only in their data."""
    sides, batch, model, method = json.loads(text)
    network = models.make(model)
    method = methods.make(method, network, clock=Clock(10, 10))
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    batch = {"views": tuple(shape(batch, side, side, 3) for side in sides)}
    found = jax.eval_shape(method.init, jax.random.key(0), batch)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32), opt_state={}, **found._asdict()
    )
    key = jax.random.key(0)
    loss, _ = jax.eval_shape(method.loss, found.params, state, batch, key)
    assert loss.shape == () and loss.dtype == jnp.float32
