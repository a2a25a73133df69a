"""Every recipe: it builds, says what it is, and its variants are checked."""

import ast
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mixjax import data, evals, methods, models
from mixjax.config import recipes
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.optim import optimizers, schedules

FOLDER = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    p.stem for p in FOLDER.glob("*.py") if p.stem not in recipes.NO_RECIPES
)


def shapes_of_a_batch(config, geometry):
    shape = (1, *geometry.image_size, geometry.channels)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    number = jax.ShapeDtypeStruct((1,), jnp.int32)
    found = {"views": (image,) * len(config.data.views), "index": number}
    if any(parse(view, "view").scene for view in config.data.views):
        # What they learn from: only that it is there is looked at.
        found["targets"] = dict.fromkeys(("map", "boxes", "masks"), number)
        found["targets"]["hw"] = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds(name):
    """Views, network, method, schedule and optimizer fit each other, on shapes."""
    config = recipes.load(str(FOLDER / f"{name}.py"))
    for view in (*config.data.views, config.data.eval_view):
        parse(view, "view")
    clock = schedules.Clock(1000, 10)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=clock)
    schedule = schedules.make(config.schedule, batch=config.batch, clock=clock)
    batch = shapes_of_a_batch(config, network.geometry)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    optimizer = optimizers.make(config.optim, schedule, variables.params, clock=clock)
    jax.eval_shape(optimizer.init, variables.params)
    assert float(schedule(500)) > 0


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_opens_with_its_command(name):
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert f"--config=configs/{name}.py" in text


@pytest.mark.parametrize("name", ["probe", "robustness"])
def test_evaluations_have_readers(name):
    """Sections of config.evals on their own: every field is an argument, and none is
    missing."""
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert f"--evals=configs/{name}.py" in text
    for section, fields in recipes.load(str(FOLDER / f"{name}.py")).items():
        file = importlib.import_module(f"mixjax.evals.{fields.name}")
        asked = inspect.signature(file.make).parameters.keys()
        context = {"sets", "method", "network", "mesh", "check", "workdir", "recipe"}
        common = {"name", "every_epochs", "at_start"}
        assert asked - context == set(fields.keys()) - common, section


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("mae_")])
def test_length_is_a_variant(name):
    path = FOLDER / f"{name}.py"
    assert recipes.load(f"{path}:epochs=7").epochs == 7.0
    with pytest.raises(UsageError, match="'epoch' is unknown; there is epochs"):
        recipes.load(f"{path}:epoch=7")
    with pytest.raises(UsageError, match="'epochs=x': not of type int"):
        recipes.load(f"{path}:epochs=x")


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_has_a_reader(name):
    """data and evals take their sections whole: a field too many would be refused."""
    config = recipes.load(str(FOLDER / f"{name}.py"))
    with pytest.raises(UsageError, match="data.colour is not a field"):
        data.make({**config.data, "colour": 1}, batch=8, seed=0, mesh=None)
    names = ("sets", "method", "network", "mesh", "check", "workdir", "recipe")
    context = dict.fromkeys(names)
    for section, fields in config.evals.items():
        spoiled = {section: {**fields, "kk": 1}}
        with pytest.raises(UsageError, match=f"evals.{section}.kk is not a field"):
            evals.make(spoiled, clock=schedules.Clock(10, 1), **context)
