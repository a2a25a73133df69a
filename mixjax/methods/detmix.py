"""Lam's pre-training for detection: mixtures, and the regions that they are made of.

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training", and
its code (p-lam/mix-ssl) where the two differ. Asymmetric MoCo, and beside it:

    m1, m2    view 1 with box B1, view 2 with box B2 filled from elsewhere: in approach
              1 from the other view, in approach 2 from the image's partner in the batch
    regions   the encoder's map of m1, projected, averaged outside and inside of B1;
              their keys are those of the teacher's map of m2 and of B2
    loss      L(view 1, view 2) + terms of m1 and of its regions, weighted by lam, the
              share of m1 outside B1, or by 1 - lam: see objectives/region_terms.py

The teacher encodes view 2 in random order (MoCo's ShuffleBN) and then m2 as it is; m2
enters its running statistics. One projector of maps serves queries and keys: it has no
teacher, and learns from the queries only.

Departures: approach 2's reversed queries are re-ordered outputs where the code encodes
reversed images again; the same, but that running statistics see m1 once. Approach 1 was
never released: that it has two boxes of equal sides, lam from the first, and an
unshuffled batch of mixtures for the teacher is taken over from approach 2.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax import objectives
from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import twin_boxes
from mixjax.objectives import branches as sides
from mixjax.objectives import region_terms
from mixjax.objectives.branches import Branch
from mixjax.objectives.health import health, queue_age
from mixjax.objectives.region_pool import region_mean
from mixjax.optim.schedules import momentum
from mixjax.state import ALL, Array, Aux, Clock, Method, Mixed, Network, Variables

PURPOSE = 1 << 30  # keeps the keys here apart from those of views


def regions(network: Network, params, features: Array, mask: Array) -> dict:
    """{"outside", "inside": outputs} of maps [B, h, w, D]; mask: [G, H, W, 1].

    Queries and keys have one projector: it has no teacher.
    """
    found, _ = network.run(
        params, {}, {"map": features}, ["region_projector"], train=True
    )
    masks = {"outside": mask[..., 0], "inside": 1 - mask[..., 0]}
    mean = lambda mask: {"projection": region_mean(found["region_map"], mask)}
    return {name: mean(mask) for name, mask in masks.items()}


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
    it sees clean views in random order. evaluate: "features" or "projection", what
    evaluators read.
    """
    terms = region_terms.terms_of(approach, region_reverse, global_positive)
    check_name("method.objective.name", objective["name"], ["moco"])
    if objective.get("queue") == 0:
        raise UsageError("objective.queue=0: this method needs queues; Lam takes 4096.")
    moco = objectives.make(objective, clock=clock)
    fixed = constant(lam)
    draw = call("method.mixture", twin_boxes.boxes, mixture)
    mix = {1: twin_boxes.mix_views, 2: twin_boxes.mix_batch}[approach]
    tau = call("method.teacher", momentum, teacher, clock=clock)
    parts = [part for part in network.parts if part in sides.TAUGHT]

    def init(rng, batch):
        views = batch["views"]
        if len(views) != 2:
            raise UsageError(f"data.views: detmix needs two, not {len(views)}.")
        params, stats = network.init(rng, views[0])
        look = lambda p, s, x: network.apply(p, s, x, train=False)[0]
        outputs = jax.eval_shape(look, params, stats, views[0])
        shapes = shapes_of(outputs)
        queues = sorted({term.queue for term in terms.values()})
        keys = jax.random.split(jax.random.fold_in(rng, PURPOSE), len(queues))
        memory = {
            name: moco.init(key, shapes[region_terms.QUEUES[name]])
            for name, key in zip(queues, keys, strict=True)
        }
        return Variables(params, stats, sides.new_teacher(params, stats), memory)

    def shapes_of(outputs: dict) -> dict:
        """What a key of each kind looks like; UsageError if the network lacks it."""
        for part, name in {
            "projector": "projection",
            "region_projector": "region_map",
        }.items():
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

    def weight_of(mixed: Mixed) -> Array:
        """lam of every image [B]."""
        return mixed.lam if fixed is None else jnp.full_like(mixed.lam, fixed)

    def queries(params, stats, x1, mixed):
        """{of what: outputs} of view 1 and its mixture, and batch statistics."""
        images = {Branch(0, 0): x1, Branch(0, 1): mixed.images}
        inputs = {branch: {"images": x} for branch, x in images.items()}
        found, stats = sides.forward(
            network, params, stats, inputs, parts, together=False
        )
        full, other = found.values()
        parted = regions(network, params, other["map"], mixed.mask)
        return {"full": full, "mixed": other} | parted, stats

    def keys_of(params, teacher, x2, mixed, rng):
        """{of what: outputs} of view 2 and its mixture, and the teacher's statistics.

        Only the clean view is shuffled, as in the code.
        """
        clean, other = Branch(1, 0), Branch(1, 1)
        full, stats = sides.teach(network, teacher, {clean: x2}, shuffle, rng)
        teacher = {**teacher, "stats": stats}
        found, stats = sides.teach(network, teacher, {other: mixed.images}, False, rng)
        parted = regions(network, params, found[other]["map"], mixed.mask)
        return {"full": full[clean]} | parted, stats

    def loss(params, state, batch, rng):
        (x1, x2), memory = batch["views"], state.memory
        rngs = jax.random.split(jax.random.fold_in(rng, PURPOSE))
        first, second = mix(x1, x2, *draw(rngs[0], *x1.shape[1:3]))
        query, stats = queries(params, state.stats, x1, first)
        key, taught = keys_of(params, state.teacher, x2, second, rngs[1])
        weight = weight_of(first)
        value, metrics = region_terms.total(
            moco, terms, query, key, memory, weight, first.partner
        )
        carry = {"memory": region_terms.remember(moco, memory, key), "stats": taught}
        metrics |= {"lam": weight.mean()} | health(query["full"]["projection"])
        metrics["queue_age"] = queue_age(memory["main"]["queue"], state.step, len(x1))
        metrics["teacher_distance"] = sides.distance(state.teacher, params)
        return value, Aux(stats, jax.lax.stop_gradient(carry), metrics)

    def update(state, carry):
        follow = tau(state.step - 1)  # the step that has just been made
        new = sides.follow(state.teacher, state.params, carry["stats"], follow)
        return state.replace(teacher=new, memory=carry["memory"])

    def show(state, batch, rng):
        views = batch["views"]
        names = ["view 1", "view 2"] if len(views) == 2 else ["input"]
        x1, x2 = (views * 2)[:2]
        # One box for all: few pictures cannot be as many groups as a batch.
        few = twin_boxes.boxes(gamma=mixture["gamma"], groups=1)
        first, second = mix(x1, x2, *few(rng, *x1.shape[1:3]))
        own = lambda mixed: jnp.broadcast_to(mixed.mask[..., 0], x1.shape[:3])
        return dict(zip(names, views, strict=True)) | {
            "mixture 1": (first.images, {"lam": weight_of(first)}),
            "mixture 1: own share": own(first),  # [B, H, W]
            "mixture 2": second.images,
            "mixture 2: own share": own(second),
        }

    return Method(
        init=init,
        loss=loss,
        update=update,
        features=sides.reader(network, evaluate),
        show=show,
        together=ALL,
    )
