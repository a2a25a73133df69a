"""Lam's pre-training for detection: mixtures, and the regions that they are made of.

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training", and
its code (p-lam/mix-ssl) where the two differ. The method adds to asymmetric MoCo:

    m1, m2    view 1 with box B1, view 2 with box B2 filled from elsewhere: from the
              other view in approach 1, from the image's partner in approach 2
    regions   the encoder's map of m1, projected, averaged outside and inside of B1;
              their keys come from the teacher's map of m2 and from B2
    loss      L(view 1, view 2) + terms of m1 and of its regions, weighted by lam, the
              share of m1 outside B1, or by 1 - lam: see objectives/region_terms.py

The teacher encodes view 2 in random order (MoCo's ShuffleBN) and then m2 in order; m2
enters its running statistics. One projector of maps serves queries and keys: it has no
teacher, and learns from the queries only.

Departures: in approach 2 the code encodes the reversed images again, where we re-order
the outputs; only the running statistics differ, which see m1 once. The code of
approach 1 was never released: we take over from approach 2 that there are two boxes of
equal sides, that lam comes from the first, and that the teacher sees mixtures in order.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax import objectives
from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import twin_boxes
from mixjax.objectives import branches, region_terms
from mixjax.objectives.branches import Branch
from mixjax.objectives.health import health, queue_age
from mixjax.objectives.region_pool import region_mean
from mixjax.optim.schedules import momentum
from mixjax.state import (
    ALL,
    Array,
    Aux,
    Clock,
    Method,
    Mixed,
    Network,
    Objective,
    TrainState,
    Tree,
    Variables,
)

PURPOSE = 1 << 30  # keeps the random keys here apart from those of views
MIX = {1: twin_boxes.mix_views, 2: twin_boxes.mix_batch}  # by approach


class DetMix(NamedTuple):
    """The settings of the method, as `make` resolves them from the config."""

    network: Network
    moco: Objective  # the contrast of every term
    terms: Mapping[str, region_terms.Term]
    global_positive: str
    constant_lam: float | None  # None: the share of the image's own area
    gamma: float  # of the Beta distribution that boxes are drawn from
    draw_boxes: Callable  # (rng, height, width) -> the Cuts of view 1 and of view 2
    mix: Callable  # (view 1, view 2, *Cuts) -> (Mixed, Mixed)
    momentum: Callable  # step -> momentum of the teacher
    shuffle: bool  # whether the teacher sees clean views in random order


def make(
    network: Network,
    *,
    approach: int,
    objective: Mapping,
    lam: str | float,
    region_reverse: str,
    global_positive: str,
    mixture: Mapping,
    teacher: Mapping,
    shuffle: bool,
    evaluate: str,
    clock: Clock,
) -> Method:
    """Builds approach 1 or 2.

    objective: {"name": "moco", "queue", "temperature"}, used for every queue. lam:
    "area" or a constant, also as text. region_reverse, global_positive: see
    region_terms.py; in approach 1 they are "none" and "region". mixture: {"gamma",
    "groups"}, see twin_boxes.py. teacher: {"momentum", "rule", "per"} of the moving
    average; shuffle: whether it sees clean views in random order. evaluate: "features"
    or "projection", the output that evaluators read.
    """
    terms = region_terms.terms_of(approach, region_reverse, global_positive)
    check_name("method.objective.name", objective["name"], ["moco"])
    if objective.get("queue") == 0:
        raise UsageError("objective.queue=0: this method needs queues; Lam takes 4096.")
    detmix = DetMix(
        network=network,
        moco=objectives.make(objective, clock=clock),
        terms=terms,
        global_positive=global_positive,
        constant_lam=constant(lam),
        draw_boxes=call("method.mixture", twin_boxes.boxes, mixture),
        gamma=mixture["gamma"],
        mix=MIX[approach],
        momentum=call("method.teacher", momentum, teacher, clock=clock),
        shuffle=shuffle,
    )
    return Method(
        init=partial(init, detmix),
        loss=partial(loss, detmix),
        update=partial(update, detmix),
        features=branches.reader(network, evaluate),
        show=partial(show, detmix),
        together=ALL,
    )


def constant(lam: str | float) -> float | None:
    """The constant that method.lam is, None for "area"; UsageError for others."""
    if lam == "area":
        return None
    try:
        value = float(lam)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"method.lam={lam!r} must be 'area' or a number in 0 .. 1.")
    return value


def init(detmix: DetMix, rng: Array, batch: dict) -> Variables:
    """Parameters, statistics, the teacher's copy of them, and a queue for each kind
    of key that the terms need."""
    views = batch["views"]
    if len(views) != 2:
        raise UsageError(f"data.views: detmix needs two, not {len(views)}.")
    params, stats = detmix.network.init(rng, views[0])
    outputs = jax.eval_shape(
        lambda p, s, x: detmix.network.apply(p, s, x, train=False)[0],
        params,
        stats,
        views[0],
    )
    shapes = key_shapes(outputs, detmix.global_positive)
    queues = sorted({term.queue for term in detmix.terms.values()})
    keys = jax.random.split(jax.random.fold_in(rng, PURPOSE), len(queues))
    memory = {
        name: detmix.moco.init(key, shapes[region_terms.QUEUES[name]])
        for name, key in zip(queues, keys, strict=True)
    }
    return Variables(params, stats, branches.new_teacher(params, stats), memory)


def key_shapes(outputs: dict, global_positive: str) -> dict:
    """{kind of key: outputs of its shape}, given the shapes of a network's outputs.

    UsageError if the network lacks a projector, or if regions are to be compared with
    whole images and the two have different widths.
    """
    parts = {"projector": "projection", "region_projector": "region_map"}
    for part, name in parts.items():
        if name not in outputs:
            raise UsageError(f"method.name='detmix' needs model.{part}.")
    whole, region = outputs["projection"], outputs["region_map"]
    if global_positive == "key" and whole.shape[-1] != region.shape[-1]:
        raise UsageError(
            f"model.region_projector.width={region.shape[-1]} must be the "
            f"{whole.shape[-1]} of model.projector: regions find whole images."
        )
    region = {"projection": region}
    return {"full": {"projection": whole}, "outside": region, "inside": region}


def loss(
    detmix: DetMix, params: Tree, state: TrainState, batch: dict, rng: Array
) -> tuple[Array, Aux]:
    """The loss of one batch: mix, encode queries and keys, contrast them."""
    (x1, x2), memory = batch["views"], state.memory
    box_rng, shuffle_rng = jax.random.split(jax.random.fold_in(rng, PURPOSE))
    cuts = detmix.draw_boxes(box_rng, *x1.shape[1:3])
    mixed1, mixed2 = detmix.mix(x1, x2, *cuts)
    queries, stats = encode_queries(detmix.network, params, state.stats, x1, mixed1)
    keys, teacher_stats = encode_keys(
        detmix, params, state.teacher, x2, mixed2, shuffle_rng
    )
    lam = lam_of(detmix, mixed1)
    value, metrics = region_terms.total(
        detmix.moco, detmix.terms, queries, keys, memory, lam, mixed1.partner
    )
    carry = {
        "memory": region_terms.remember(detmix.moco, memory, keys),
        "stats": teacher_stats,
    }
    metrics |= {"lam": lam.mean()} | health(queries["full"]["projection"])
    metrics["queue_age"] = queue_age(memory["main"]["queue"], state.step, len(x1))
    metrics["teacher_distance"] = branches.distance(state.teacher, params)
    return value, Aux(stats, jax.lax.stop_gradient(carry), metrics)


def update(detmix: DetMix, state: TrainState, carry: Tree) -> TrainState:
    """Stores the new queues and moves the teacher, after the optimizer's step."""
    # state.step counts the step just made; schedules count from 0.
    rate = detmix.momentum(state.step - 1)
    teacher = branches.follow(state.teacher, state.params, carry["stats"], rate)
    return state.replace(teacher=teacher, memory=carry["memory"])


# --- the parts of the loss -----------------------------------------------------------


def lam_of(detmix: DetMix, mixed: Mixed) -> Array:
    """The weight lam of every image, [B]."""
    if detmix.constant_lam is None:
        return mixed.lam
    return jnp.full_like(mixed.lam, detmix.constant_lam)


def encode_queries(
    network: Network, params: Tree, stats: Tree, x1: Array, mixed: Mixed
) -> tuple[dict, Tree]:
    """({"full", "mixed", "outside", "inside": outputs}, batch statistics).

    Of view 1, of its mixture, and of the regions of its mixture.
    """
    images = {Branch(0, 0): x1, Branch(0, 1): mixed.images}
    outputs, stats = branches.forward(
        network,
        params,
        stats,
        {branch: {"images": x} for branch, x in images.items()},
        [part for part in network.parts if part in branches.TAUGHT],
        joint=False,
    )
    full, mixture = outputs.values()
    by_region = regions(network, params, mixture["map"], mixed.mask)
    return {"full": full, "mixed": mixture} | by_region, stats


def encode_keys(
    detmix: DetMix, params: Tree, teacher: Tree, x2: Array, mixed: Mixed, rng: Array
) -> tuple[dict, Tree]:
    """({"full", "outside", "inside": outputs}, the teacher's batch statistics).

    Of view 2, and of the regions of its mixture. Only the clean view is shuffled, as
    in the code.
    """
    clean, mixture = Branch(1, 0), Branch(1, 1)
    network = detmix.network
    full, stats = branches.teach(network, teacher, {clean: x2}, detmix.shuffle, rng)
    # The mixture goes second, with the running statistics that the clean view left.
    teacher = {**teacher, "stats": stats}
    outputs, stats = branches.teach(
        network, teacher, {mixture: mixed.images}, False, rng
    )
    by_region = regions(network, params, outputs[mixture]["map"], mixed.mask)
    return {"full": full[clean]} | by_region, stats


def regions(network: Network, params: Tree, features: Array, mask: Array) -> dict:
    """{"outside", "inside": outputs} of maps [B, h, w, D]; mask: [G, H, W, 1].

    `params` are always the trained ones: queries and keys share one projector.
    """
    outputs, _ = network.run(
        params, {}, {"map": features}, ["region_projector"], train=True
    )
    masks = {"outside": mask[..., 0], "inside": 1 - mask[..., 0]}  # [G, H, W]
    return {
        name: {"projection": region_mean(outputs["region_map"], region)}
        for name, region in masks.items()
    }


# --- pictures ------------------------------------------------------------------------


def show(detmix: DetMix, state: TrainState, batch: dict, rng: Array) -> dict:
    """The views and their mixtures as columns for evals/pictures.py."""
    views = batch["views"]
    names = ["view 1", "view 2"] if len(views) == 2 else ["input"]
    x1, x2 = (views * 2)[:2]
    # One box for all: a few pictures cannot be cut into as many groups as a batch.
    draw_box = twin_boxes.boxes(gamma=detmix.gamma, groups=1)
    mixed1, mixed2 = detmix.mix(x1, x2, *draw_box(rng, *x1.shape[1:3]))
    share = lambda mixed: jnp.broadcast_to(mixed.mask[..., 0], x1.shape[:3])
    return dict(zip(names, views, strict=True)) | {
        "mixture 1": (mixed1.images, {"lam": lam_of(detmix, mixed1)}),
        "mixture 1: own share": share(mixed1),  # [B, H, W]
        "mixture 2": mixed2.images,
        "mixture 2: own share": share(mixed2),
    }
