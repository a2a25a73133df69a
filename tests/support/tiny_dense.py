"""Segmentation and detection, tiny, on pictures of coloured shapes."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from bench.support import dense_pictures, small_dense_recipes
from mixjax import data, methods, models
from mixjax.config import recipes
from mixjax.optim import optimizers
from mixjax.optim.schedules import Clock
from mixjax.sharding import meshes
from mixjax.training import initial_state, train_step
from tests.support import tiny

CLOCK = Clock(100, 100)
COCO, VOC = ("coco:{}/coco", "train"), ("voc_objects:{}/VOCdevkit", "trainval2007")
SYSTEMS = {
    "uper": ("ade20k_uper_vitb:bias=1", ("ade20k:{}/ade", "train")),
    "vitdet": ("coco_vitdet_vitb", COCO),
    "cascade": ("coco_cascade_vitl", COCO),
    "cascade_d2": ("coco_cascade_vitl:form=detectron2", COCO),
    "c4": ("coco_c4_r50", COCO),
    "c4_voc": ("voc_c4_r50", VOC),
}
CLASSES = {"uper": 150, "c4_voc": 20}
HALF = {
    "model.encoder.depth": 2,
    "model.encoder.width": 32,
    "model.encoder.global_blocks": (1,),
    "model.encoder.taps": (0, 0, 1, 1),
    "optim.layers": (2,),
}
FEW = {
    "method.rpn.before": (40, 20),
    "method.rpn.after": (20, 10),
    "method.rpn.samples": 32,
    "method.boxes.samples": 16,
    "method.test.count": 5,
    "method.test.candidates": 40,
}
NARROW = {
    "model.encoder.widths": (8, 8, 16),
    "model.encoder.stem_width": 8,
    "model.res5.width": 16,
}


@functools.cache
def pictures() -> Path:
    return dense_pictures.save(Path(tempfile.mkdtemp()))


def small(name, **changes):
    """The recipe of a system, tiny, on eight pictures of 64."""
    text, (source, split) = SYSTEMS[name]
    file, _, argument = text.partition(":")
    c = recipes.load(f"{tiny.ROOT}/configs/{file}.py:{argument}")
    source = source.format(pictures())
    fields = small_dense_recipes.fields(c, source, split, 64, CLASSES.get(name, 3))
    fields |= FEW | {"batch": 8}
    if c.model.encoder.name == "vit_dense":
        fields |= HALF
    else:
        fields |= NARROW
    fields |= small_dense_recipes.length(6, 1e-3) | {"checkpoint.every_epochs": 1e9}
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    known = recipes.flat(c.to_dict())
    c.update_from_flattened_dict({k: v for k, v in fields.items() if k in known})
    return c


def step_of(config, method, state):
    """The training step on batches as they are, at a rate that suits so few."""
    high = 1e-3 if config.optim.name == "adamw" else 0.02
    rate = lambda step: jnp.float32(high)
    optimizer = optimizers.make(config.optim, rate, state.params, clock=CLOCK)
    same = lambda batch, resident, rng: batch
    step = train_step.make_step(method, optimizer, rate, same, config)
    return lambda state, batch: step(state, batch, {})


@functools.cache
def built(name):
    """(config, method, a batch as it comes from the pictures, state)."""
    config = small(name)
    sets = data.make(config.data, batch=8, seed=0, mesh=meshes.make(fsdp=1))
    batches = sets.train.batches(0, 1)
    batch = jax.device_get(next(batches))
    batches.close()
    augment = jax.jit(sets.train.augment)
    batch = jax.device_get(augment(batch, {}, jax.random.key(0)))
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=CLOCK)
    params = jax.eval_shape(method.init, jax.random.key(0), batch).params
    optimizer = optimizers.make(config.optim, lambda step: 0.0, params, clock=CLOCK)
    state = jax.jit(initial_state.make_init(method, optimizer, batch))(
        jax.random.key(0)
    )
    return config, method, batch, state
