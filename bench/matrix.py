"""Every framework with every mixture: 20 steps on CIFAR-10 pictures, 1 and 8 devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python bench/matrix.py --data=cifar10.npz --json=results/matrix.json

The CIFAR-10 recipes with a narrow ResNet-18, 64 new pictures a step, light crops, Adam
at a rate of 0.001 and, where there is one, a queue of two steps, so that 20 steps show
something. A cell says: the loss in the beginning and at the end, how often the step was
traced, and the largest difference between one device and eight, as a share of the loss.

With JAX_ENABLE_X64=1, all in double precision, both runs are left to themselves for the
20 steps. In single precision they would part: training amplifies rounding, here about
threefold a step. So there both make each step from the same state.
"""

import argparse
import ast
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from support import double_precision, record

from configs import common
from mixjax import methods, mixtures, models
from mixjax.config import recipes, registry
from mixjax.data import pipeline
from mixjax.data.views import parse
from mixjax.optim import optimizers
from mixjax.sharding import meshes
from mixjax.state import Clock
from mixjax.training import initial_state, train_step

MIXTURES = ["none", "both", *registry.names("mixjax.mixtures")]
BATCH, STEPS = 64, 20


def siamese_recipes() -> dict[str, str]:
    """{framework: its recipe for CIFAR-10}; a recipe's title begins with its name."""
    frameworks = {}
    for path in sorted((record.ROOT / "configs").glob("c10_*.py")):
        text = path.read_text()
        if "siamese.recipe(" in text:
            title = ast.get_docstring(ast.parse(text))
            frameworks[title.partition(" on CIFAR-10")[0]] = path.stem
    return frameworks


RECIPES = siamese_recipes()


def recipe(framework: str, mixture: str):
    """The recipe, narrow."""
    path = record.ROOT / "configs" / f"{RECIPES[framework]}.py"
    alone = mixture in ("none", "both")
    variant = f"mixture={mixture}" if alone else mixtures.variant(mixture)
    c = recipes.load(f"{path}:{variant}")
    c.model.encoder.widths, c.model.encoder.stem_width = (8, 16, 32, 64), 8
    stats = "normalize((.4914, .4822, .4465), (.2023, .1994, .2010))"
    view = f"decode | crop(32, scale=(.3, 1), filter='bilinear') | flip | {stats}"
    c.data.views = (view,) * len(c.data.views)
    unit = c.optim.unit_rules
    c.optim = common.adam(1e-6)
    c.optim.unit_rules = unit
    objective = c.method.objective
    if objective.name == "moco":
        objective.queue = 2 * BATCH
    if objective.name == "wmse":
        objective.size = BATCH // 2
        c.model.projector.widths = (64, 16)
    return c


def make(config):
    """(step, the first state, [how often the step has been traced])."""
    network = models.make(config.model)
    clock = Clock(STEPS, STEPS)
    method = methods.make(config.method, network, clock=clock)
    rate = lambda step: jnp.float32(1e-3)
    views = [parse(text, "views") for text in config.data.views]
    augment = functools.partial(pipeline.augment, views)
    config.accumulate = 1
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    number = jax.ShapeDtypeStruct((1,), jnp.int32)
    example = {"views": (image,) * len(views), "index": number, "label": number}
    params = jax.eval_shape(method.init, jax.random.key(0), example).params
    optimizer = optimizers.make(config.optim, rate, params, clock=clock)
    plain = train_step.make_step(method, optimizer, rate, augment, config)
    traced = []

    def step(state, batch, resident):
        traced.append(1)
        state, metrics = plain(state, batch, resident)
        return state, metrics["loss"]

    init = jax.jit(initial_state.make_init(method, optimizer, example))
    return step, init(jax.random.key(0)), traced


def cell(config, images) -> dict:
    """What there is to say of a framework with a mixture."""
    plain, state, traced = make(config)
    mesh = meshes.make(fsdp=1)
    everywhere, cut = meshes.replicated(mesh), meshes.batched(mesh)
    one = jax.jit(plain)
    eight = jax.jit(
        plain,
        in_shardings=(everywhere, cut, everywhere),
        out_shardings=everywhere,
    )
    spread = {"images": jax.device_put(images, everywhere)}
    other, losses, apart = state, [], 0.0
    for i in range(STEPS):
        index = jnp.arange(i * BATCH, (i + 1) * BATCH, dtype=jnp.int32)
        batch = {"index": index, "label": index}
        start = jax.device_put(other if double_precision.ON else state, everywhere)
        other, second = eight(start, jax.device_put(batch, cut), spread)
        state, first = one(state, batch, {"images": images})
        losses.append(float(first))
        apart = max(apart, abs(float(second) / losses[-1] - 1))
    return {
        "loss_first": float(np.mean(losses[2:7])),  # a queue is full by then
        "loss_last": float(np.mean(losses[-5:])),
        "finite": bool(np.isfinite(losses).all()),
        "traced": len(traced) // 2,  # for one device and for eight
        "difference": float(apart),
        "devices": jax.device_count(),
        "bits": 64 if double_precision.ON else 32,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="frameworks, between commas")
    options = parser.parse_args()
    with np.load(options.data) as file:
        images = jnp.asarray(file["train_image"][: BATCH * STEPS])
    rows = []
    for framework in filter(None, options.only.split(",")) if options.only else RECIPES:
        for mixture in MIXTURES:
            row = {"framework": framework, "mixture": mixture}
            row |= cell(recipe(framework, mixture), images)
            good = row["finite"] and row["loss_last"] < row["loss_first"]
            print(
                f"| {framework:8} | {mixture:8} | {row['loss_first']:8.4f} to "
                f"{row['loss_last']:8.4f} | {row['traced']} | "
                f"{row['difference']:.1e} |{'' if good else ' NO'}",
                flush=True,
            )
            rows.append(row)
            record.write(options.json, rows)  # what is done is kept


if __name__ == "__main__":
    main()
