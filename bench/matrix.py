"""Every framework with every mixture: 20 steps on CIFAR-10 pictures, 1 and 8 devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python bench/matrix.py --data=cifar10.npz --json=results/matrix.json

The CIFAR-10 recipes with a narrow ResNet-18, 64 pictures a step, a rate of a tenth
and, where there is one, a queue of two steps. A cell says: the loss in the beginning,
at the end, how often the step was traced, and the largest difference of a loss between
one device and eight, as a share of the loss.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import record

from mixjax import meshes, methods, models, optim, recipes, train
from mixjax.data import pipeline
from mixjax.data.views import parse
from mixjax.state import Clock

RECIPES = {
    "MoCo": "c10_moco",
    "SimCLR": "c10_simclr",
    "BYOL": "c10_byol",
    "SimSiam": "c10_simsiam",
    "SwAV": "c10_swav",
    "W-MSE": "c10_wmse",
}
MIXTURES = ("none", "unmix", "mixmask", "both", "erase")
BATCH, STEPS = 64, 20


def recipe(framework: str, mixture: str):
    """The recipe, narrow."""
    path = record.ROOT / "configs" / f"{RECIPES[framework]}.py"
    c = recipes.load(f"{path}:mixture={mixture}")
    c.model.encoder.widths, c.model.encoder.stem_width = (16, 32, 64, 128), 16
    objective = c.method.objective
    if framework == "MoCo":
        objective.queue = 2 * BATCH
    if framework == "W-MSE":
        objective.size = BATCH // 2
        c.model.projector.widths = (64, 16)
    if framework == "SwAV":
        c.optim.freeze_rules = ()
    return c


def losses(config, images, devices: int) -> tuple[list[float], int]:
    """(the loss of every step, how often the step was traced)."""
    network = models.make(config.model)
    clock = Clock(STEPS, STEPS)
    method = methods.make(config.method, network, clock=clock)
    rate = lambda step: jnp.float32(0.1 * config.schedule.base)
    views = [parse(text, "views") for text in config.data.views]
    augment = functools.partial(pipeline.augment, views)
    config.accumulate = 1
    config.optim.lr_rules = ()
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    number = jax.ShapeDtypeStruct((1,), jnp.int32)
    example = {"views": (image,) * len(views), "index": number, "label": number}
    params = jax.eval_shape(method.init, jax.random.key(0), example).params
    optimizer = optim.make(config.optim, rate, params, clock=clock)
    plain = train.make_step(method, optimizer, rate, augment, config)
    traced = []

    def step(state, batch, resident):
        traced.append(1)
        return plain(state, batch, resident)

    how = {}
    if devices > 1:
        mesh = meshes.make(fsdp=1)
        everywhere, cut = meshes.replicated(mesh), meshes.batched(mesh)
        how = {
            "in_shardings": (everywhere, cut, everywhere),
            "out_shardings": everywhere,
        }
    step = jax.jit(step, **how)
    state = jax.jit(train.make_init(method, optimizer, example))(jax.random.key(0))
    found = []
    for i in range(STEPS):
        index = jnp.arange(i * BATCH, (i + 1) * BATCH, dtype=jnp.int32) % len(images)
        batch = {"index": index, "label": index}
        state, metrics = step(state, batch, {"images": images})
        found.append(float(metrics["loss"]))
    return found, len(traced)


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
            config = recipe(framework, mixture)
            one, traced = losses(config, images, 1)
            eight, also = losses(config, images, jax.device_count())
            apart = np.abs(np.array(one) / np.array(eight) - 1).max()
            row = {
                "framework": framework,
                "mixture": mixture,
                "loss_first": float(np.mean(one[2:7])),  # a queue is full by then
                "loss_last": float(np.mean(one[-5:])),
                "traced": max(traced, also),
                "difference": float(apart),
                "devices": jax.device_count(),
            }
            good = np.isfinite(one).all() and row["loss_last"] < row["loss_first"]
            print(
                f"{framework:8} {mixture:8} {row['loss_first']:9.4f} ->"
                f"{row['loss_last']:9.4f}  traced {row['traced']}  1 against "
                f"{jax.device_count()} devices {apart:.1e}  {'' if good else 'NO'}",
                flush=True,
            )
            rows.append(row)
    if options.json:
        record.write(options.json, rows)


if __name__ == "__main__":
    main()
