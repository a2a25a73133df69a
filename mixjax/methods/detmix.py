"""Lam's pre-training for detection: mixtures, and the regions that they consist of.

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training", and
its code (p-lam/mix-ssl) where the two differ. Asymmetric MoCo with further terms:

    m1, m2    view 1 with box B1 and view 2 with box B2 filled with other content: in
              approach 1 from the other view, in approach 2 from the partner image
    regions   the encoder's map of m1, projected and averaged outside and inside of B1;
              their keys come from the teacher's map of m2 and from B2
    loss      L(view 1, view 2) + terms of m1 and of its regions, weighted by lam, the
              share of m1 outside of B1, or by 1 - lam: see objectives/region_terms.py

The teacher encodes view 2 in random order (MoCo's ShuffleBN) and then m2 in its own
order; m2 enters its running statistics. Queries and keys share one projector of maps,
which has no teacher and learns from the queries only.

Departures: in approach 2 the reversed queries are reordered outputs, where the code
encodes the reversed images again. The result is the same, except that the running
statistics see m1 once. Approach 1 was never released: two boxes of equal size, lam
taken from the first, and an unshuffled batch of mixtures for the teacher follow
approach 2.
"""

import functools
from collections.abc import Callable, Mapping
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
    Variables,
)

PURPOSE = 1 << 30  # keeps the random keys of the method apart from those of the views
VIEW_1, MIXTURE_1 = Branch(0, 0), Branch(0, 1)
VIEW_2, MIXTURE_2 = Branch(1, 0), Branch(1, 1)


class Settings(NamedTuple):
    """What the functions of approach 1 or 2 need."""

    network: Network
    moco: Objective
    terms: Mapping  # {name: region_terms.Term}
    draw_boxes: Callable  # (rng, height, width) -> the boxes of both views
    mix: Callable  # (view 1, view 2, boxes) -> (Mixed of view 1, Mixed of view 2)
    constant_lam: float | None  # None: the share outside of the box
    global_positive: str
    teacher_momentum: Callable  # step -> momentum
    shuffle: bool
    gamma: float


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
    """Approach 1 or 2.

    objective: {"name": "moco", "queue", "temperature"}, for every queue. lam: "area" or
    a constant, also as text. region_reverse, global_positive: see region_terms.py; in
    approach 1 they are "none" and "region". mixture: {"gamma", "groups"}, see
    twin_boxes.py. teacher: {"momentum", "rule", "per"} of the moving average; shuffle:
    whether the teacher sees unmixed views in random order. evaluate: the output that
    evaluators read, "features" or "projection". UsageError names a field that is wrong.
    """
    terms = region_terms.terms_of(approach, region_reverse, global_positive)
    check_name("method.objective.name", objective["name"], ["moco"])
    if objective.get("queue") == 0:
        raise UsageError("objective.queue=0: this method needs queues; Lam takes 4096.")
    settings = Settings(
        network=network,
        moco=objectives.make(objective, clock=clock),
        terms=terms,
        draw_boxes=call("method.mixture", twin_boxes.boxes, mixture),
        mix={1: twin_boxes.mix_views, 2: twin_boxes.mix_batch}[approach],
        constant_lam=parse_lam(lam),
        global_positive=global_positive,
        teacher_momentum=call("method.teacher", momentum, teacher, clock=clock),
        shuffle=shuffle,
        gamma=mixture["gamma"],
    )
    return Method(
        init=functools.partial(init, settings),
        loss=functools.partial(loss, settings),
        update=functools.partial(update, settings),
        features=branches.reader(network, evaluate),
        show=functools.partial(show, settings),
        together=ALL,
    )


def parse_lam(lam: str | float) -> float | None:
    """The constant that method.lam states, None for "area"; UsageError otherwise."""
    if lam == "area":
        return None
    try:
        value = float(lam)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"method.lam={lam!r} must be 'area' or a number in 0 .. 1.")
    return value


# --- parameters, teacher and queues --------------------------------------------------


def init(settings: Settings, rng: Array, batch: dict) -> Variables:
    """Parameters, a teacher equal to them, and one queue of random keys per kind."""
    views = batch["views"]
    if len(views) != 2:
        raise UsageError(f"data.views: detmix needs two views, not {len(views)}.")
    params, stats = settings.network.init(rng, views[0])
    forward = lambda p, s, x: settings.network.apply(p, s, x, train=False)[0]
    outputs = jax.eval_shape(forward, params, stats, views[0])
    key_shapes = shapes_of_keys(settings.global_positive, outputs)
    queues = sorted({term.queue for term in settings.terms.values()})
    keys = jax.random.split(jax.random.fold_in(rng, PURPOSE), len(queues))
    memory = {
        name: settings.moco.init(key, key_shapes[region_terms.QUEUES[name]])
        for name, key in zip(queues, keys, strict=True)
    }
    return Variables(params, stats, branches.new_teacher(params, stats), memory)


def shapes_of_keys(global_positive: str, outputs: dict) -> dict:
    """{kind of key: shapes of its outputs}; UsageError if the network lacks a part."""
    required = {"projector": "projection", "region_projector": "region_map"}
    for part, name in required.items():
        if name not in outputs:
            raise UsageError(f"method.name='detmix' needs model.{part}.")
    image, region = outputs["projection"], outputs["region_map"]
    if global_positive == "key" and image.shape[-1] != region.shape[-1]:
        raise UsageError(
            f"model.region_projector.width={region.shape[-1]} must equal the "
            f"{image.shape[-1]} of model.projector, because with "
            f"method.global_positive='key' regions are compared with whole images."
        )
    region = {"projection": region}
    return {"full": {"projection": image}, "outside": region, "inside": region}


# --- the loss ------------------------------------------------------------------------


def loss(
    settings: Settings, params, state, batch: dict, rng: Array
) -> tuple[Array, Aux]:
    """Equation 7 (approach 1) or 8 (approach 2), and what the update needs."""
    (x1, x2), memory = batch["views"], state.memory
    box_rng, teacher_rng = jax.random.split(jax.random.fold_in(rng, PURPOSE))
    m1, m2 = settings.mix(x1, x2, *settings.draw_boxes(box_rng, *x1.shape[1:3]))
    queries, stats = encode_queries(settings.network, params, state.stats, x1, m1)
    keys, teacher_stats = encode_keys(
        settings, params, state.teacher, x2, m2, teacher_rng
    )
    weight = share_outside(settings, m1)
    value, metrics = region_terms.total(
        settings.moco, settings.terms, queries, keys, memory, weight, m1.partner
    )
    # The keys are enqueued after the loss, so that no query meets its own key there.
    carry = {
        "memory": region_terms.remember(settings.moco, memory, keys),
        "stats": teacher_stats,
    }
    metrics |= {"lam": weight.mean()} | health(queries["full"]["projection"])
    metrics["queue_age"] = queue_age(memory["main"]["queue"], state.step, len(x1))
    metrics["teacher_distance"] = branches.distance(state.teacher, params)
    return value, Aux(stats, jax.lax.stop_gradient(carry), metrics)


def share_outside(settings: Settings, mixed: Mixed) -> Array:
    """lam of every image [B]: its share outside of the box, or the constant."""
    if settings.constant_lam is None:
        return mixed.lam
    return jnp.full_like(mixed.lam, settings.constant_lam)


def encode_queries(network: Network, params, stats, x1: Array, m1: Mixed):
    """({kind: outputs} of view 1, of its mixture and of the regions, statistics)."""
    parts = [part for part in network.parts if part in branches.TAUGHT]
    inputs = {VIEW_1: {"images": x1}, MIXTURE_1: {"images": m1.images}}
    outputs, stats = branches.forward(
        network, params, stats, inputs, parts, together=False
    )
    regions = pool_regions(network, params, outputs[MIXTURE_1]["map"], m1.mask)
    queries = {"full": outputs[VIEW_1], "mixed": outputs[MIXTURE_1]} | regions
    return queries, stats


def encode_keys(settings: Settings, params, teacher, x2: Array, m2: Mixed, rng: Array):
    """({kind: outputs} of view 2 and of the regions of m2, the teacher's statistics).

    Only the unmixed view is shuffled, as in the code.
    """
    teach = functools.partial(branches.teach, settings.network)
    view, stats = teach(teacher, {VIEW_2: x2}, settings.shuffle, rng)
    teacher = {**teacher, "stats": stats}
    mixture, stats = teach(teacher, {MIXTURE_2: m2.images}, False, rng)
    regions = pool_regions(settings.network, params, mixture[MIXTURE_2]["map"], m2.mask)
    return {"full": view[VIEW_2]} | regions, stats


def pool_regions(network: Network, params, maps: Array, mask: Array) -> dict:
    """{"outside", "inside": outputs}: the projected map, averaged over each region.

    maps: [B, h, w, D]; mask: [G, H, W, 1]. Queries and keys share the projector.
    """
    outputs, _ = network.run(
        params, {}, {"map": maps}, ["region_projector"], train=True
    )
    masks = {"outside": mask[..., 0], "inside": 1 - mask[..., 0]}  # [G, H, W]
    pool = lambda mask: {"projection": region_mean(outputs["region_map"], mask)}
    return {name: pool(mask) for name, mask in masks.items()}


# --- after the optimizer, and pictures -----------------------------------------------


def update(settings: Settings, state, carry: dict):
    """The state with the teacher moved towards the parameters, and the new queues."""
    rate = settings.teacher_momentum(state.step - 1)  # the step that has just been made
    teacher = branches.follow(state.teacher, state.params, carry["stats"], rate)
    return state.replace(teacher=teacher, memory=carry["memory"])


def show(settings: Settings, state, batch: dict, rng: Array) -> dict:
    """Pictures of the views, their mixtures, and the own share of each pixel."""
    views = batch["views"]
    names = ["view 1", "view 2"] if len(views) == 2 else ["input"]
    x1, x2 = (views * 2)[:2]
    # A few pictures cannot be divided into as many groups as a batch: one box for all.
    draw_boxes = twin_boxes.boxes(gamma=settings.gamma, groups=1)
    m1, m2 = settings.mix(x1, x2, *draw_boxes(rng, *x1.shape[1:3]))
    own_share = lambda mixed: jnp.broadcast_to(mixed.mask[..., 0], x1.shape[:3])
    return dict(zip(names, views, strict=True)) | {
        "mixture 1": (m1.images, {"lam": share_outside(settings, m1)}),
        "mixture 1: own share": own_share(m1),  # [B, H, W]
        "mixture 2": m2.images,
        "mixture 2: own share": own_share(m2),
    }
