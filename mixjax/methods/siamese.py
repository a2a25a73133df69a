"""Siamese pre-training on image mixtures: any objective with any mixture.

    x1, x2, ..    views of the same images
    m             x1 mixed with its partners; lam_i the share of image i in m_i
    L(a, b)       an objective's loss on two branches: MoCo, SimCLR, BYOL, SimSiam, ...
    loss = L(x1, x2) + lam L(m, x2) + (1 - lam) L(reverse m, x2)

Un-Mix (Shen et al., AAAI 2022, equations 1 to 3) and MixMask (Vishniakov et al., 2022,
equations 2 to 5). Image i is also part of another mixture, with share 1 - lam:
`reverse` moves the features of that mixture to place i, by the inverse of the
permutation that chose the partners. It re-orders outputs instead of encoding again,
which is the same as long as batch statistics do not depend on the order of the batch.
Several mixtures add their pairs of terms (MixMask's MixMask*); erasing yields two
images instead of two orders (MixMask, table 4). With branches="both" (Un-Mix, equation
4) the mixtures of x1 and x2 are compared with each other, and lam is not needed.

Config fields cover the differences between code bases: which views predict which
(`pairs`), whether directions are summed or averaged (`reduce`), which branches share
BatchNorm statistics (`join`), whether a mixture is also a target (`mixed_as`), which
views a mixture is compared with (`against`), how features are re-ordered (`reverse`).

Departures: in symmetric MoCo the mixture is encoded once, not twice with the same
result, so that the running statistics see it once; with more than two views only the
first is mixed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax import mixtures as image_mixtures
from mixjax import objectives
from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.objectives import branches
from mixjax.objectives.branches import Branch, Outputs, in_order
from mixjax.objectives.health import health, queue_age
from mixjax.objectives.mixing import Pairing, Pairs, losses
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


class Siamese(NamedTuple):
    """The settings of a siamese method, as `make` resolves them from the config."""

    network: Network
    objective: Objective  # of the clean views
    mixed_objective: Objective  # of the terms of mixtures
    pairing: Pairing
    join: Mapping  # {"encoder", "heads"}: the branches that share batch statistics
    momentum: Callable | None  # step -> momentum of the teacher; None: no teacher
    shuffle: bool  # whether the teacher sees the batch in random order
    mixtures: Mapping  # the sections of the config that `mixes` was made of
    mixes: Mapping[str, Callable]  # name: (rng, images) -> list of Mixed


def make(
    network: Network,
    *,
    objective: Mapping,
    pairing: Mapping,
    join: Mapping,
    teacher: Mapping,
    shuffle: bool,
    mixtures: Mapping,
    mixed_objective: Mapping,
    evaluate: str,
    clock: Clock,
) -> Method:
    """Builds a siamese method with any number of mixtures.

    objective: a section for objectives.make; mixed_objective: the fields of it that
    have other values in the terms of mixtures. pairing: see Pairing. join:
    {"encoder": "none" or "all", "heads": "none", "call" or "all"}, which branches go
    through in one batch and so share batch statistics; "call" stands for the branches
    of one term of the loss. teacher: {}, or {"momentum", "rule", "per"} of the moving
    average that encodes the targets; shuffle: whether the teacher sees the batch in
    random order. mixtures: {any name: section of a mixture}. evaluate: "features" or
    "projection", the output that evaluators read.
    """
    pairing = call("method.pairing", Pairing, pairing).check()
    check_name("method.join.encoder", join["encoder"], ["none", "all"])
    check_name("method.join.heads", join["heads"], ["none", "call", "all"])
    siamese = Siamese(
        network=network,
        objective=objectives.make(objective, clock=clock),
        mixed_objective=objectives.make({**objective, **mixed_objective}, clock=clock),
        pairing=pairing,
        join=join,
        momentum=call("method.teacher", momentum, teacher, clock=clock)
        if teacher
        else None,
        shuffle=shuffle,
        mixtures=mixtures,
        mixes=image_mixtures.make(mixtures),
    )
    return Method(
        init=partial(init, siamese),
        loss=partial(loss, siamese),
        update=partial(update, siamese),
        features=branches.reader(network, evaluate),
        show=partial(show, siamese),
        together=ALL,
    )


def init(siamese: Siamese, rng: Array, batch: dict) -> Variables:
    """Parameters, statistics, the teacher's copy of them, and the objective's memory.

    UsageError if there are fewer than two views, or no projector.
    """
    views = batch["views"]
    if len(views) < 2:
        raise UsageError("data.views: a siamese method needs at least two.")
    params, stats = siamese.network.init(rng, views[0])
    outputs = jax.eval_shape(
        lambda p, s, x: siamese.network.apply(p, s, x, train=False)[0],
        params,
        stats,
        views[0],
    )
    if "projection" not in outputs:
        raise UsageError("method.name='siamese' needs a section model.projector.")
    memory = siamese.objective.init(jax.random.fold_in(rng, PURPOSE), outputs)
    teacher = branches.new_teacher(params, stats) if siamese.momentum else {}
    return Variables(params, stats, teacher, memory)


def loss(
    siamese: Siamese, params: Tree, state: TrainState, batch: dict, rng: Array
) -> tuple[Array, Aux]:
    """The loss of one batch: mix, encode, take targets, compare."""
    views, memory = batch["views"], state.memory
    mix_rng, shuffle_rng, objective_rng = jax.random.split(
        jax.random.fold_in(rng, PURPOSE), 3
    )
    mixtures, images = mix_views(siamese.mixes, siamese.pairing, views, mix_rng)
    calls = siamese.pairing.calls(len(views), len(mixtures))
    online, stats = encode(siamese, params, state.stats, images, calls)
    targets, carry = encode_targets(
        siamese, state.teacher, images, calls, online, shuffle_rng
    )
    terms = losses(
        siamese.pairing,
        (siamese.objective, siamese.mixed_objective),
        len(views),
        mixtures,
        online,
        targets,
        memory,
        objective_rng,
    )
    # Only clean targets are remembered: calls[0] are the pairs of the views.
    clean = sorted({target for _, target in calls[0]})
    carry["memory"] = siamese.objective.remember(
        memory, [targets[0][branch] for branch in clean]
    )
    metrics = {f"loss_{name}": value for name, value in terms.items()}
    metrics |= {f"lam_{name}": mixed.lam.mean() for name, mixed in mixtures.items()}
    metrics |= health(online[0][Branch(0, 0)]["projection"])
    if "queue" in memory:
        keys_per_step = len(clean) * len(views[0])
        metrics["queue_age"] = queue_age(memory["queue"], state.step, keys_per_step)
    if siamese.momentum:
        metrics["teacher_distance"] = branches.distance(state.teacher, params)
    return sum(terms.values()), Aux(stats, jax.lax.stop_gradient(carry), metrics)


def update(siamese: Siamese, state: TrainState, carry: Tree) -> TrainState:
    """Stores the new memory and moves the teacher, after the optimizer's step."""
    state = state.replace(memory=carry["memory"])
    if not siamese.momentum:
        return state
    # state.step counts the step just made; schedules count from 0.
    rate = siamese.momentum(state.step - 1)
    teacher = branches.follow(state.teacher, state.params, carry["stats"], rate)
    return state.replace(teacher=teacher)


# --- the parts of the loss -----------------------------------------------------------


def mix_views(
    mixes: Mapping[str, Callable],
    pairing: Pairing,
    views: Sequence[Array],
    rng: Array,
) -> tuple[dict[str, Mixed], dict[Branch, Array]]:
    """(the mixtures of the first view by name, the images [B, H, W, C] of a branch).

    A mixture that yields several images, such as erasing, gives NAME_1, NAME_2, ...
    """
    images = {Branch(i, 0): view for i, view in enumerate(views)}
    mixtures = {}
    for number, (name, mix) in enumerate(mixes.items()):
        key = jax.random.fold_in(rng, number)
        # The same key for both views, and so the same regions and partners.
        first = mix(key, views[0])
        second = mix(key, views[1]) if pairing.branches == "both" else ()
        for i, mixed in enumerate(first):
            mixtures[f"{name}_{i + 1}" if len(first) > 1 else name] = mixed
            images[Branch(0, len(mixtures))] = mixed.images
            if second:
                images[Branch(1, len(mixtures))] = second[i].images
    return mixtures, images


def encode(
    siamese: Siamese,
    params: Tree,
    stats: Tree,
    images: Mapping[Branch, Array],
    calls: list[Pairs],
) -> tuple[list[Outputs], Tree]:
    """(the trained network's outputs for each of `calls`, batch statistics)."""
    used = {predicting for pairs in calls for predicting, _ in pairs}
    if not siamese.momentum:  # without a teacher, targets come from here as well
        used |= {target for pairs in calls for _, target in pairs}
    # Sorted, a view is followed by its mixtures: running statistics are updated in
    # this order, and the last branch weighs most in them.
    used = sorted(used)
    encoded, stats = branches.forward(
        siamese.network,
        params,
        stats,
        {branch: {"images": images[branch]} for branch in used},
        ["encoder"],
        joint=siamese.join["encoder"] == "all",
    )
    heads = [part for part in siamese.network.parts if part != "encoder"]
    outputs = []
    for members in head_batches(siamese.join["heads"], calls, used):
        projected, stats = branches.forward(
            siamese.network,
            params,
            stats,
            {branch: {"features": encoded[branch]["features"]} for branch in members},
            heads,
            joint=siamese.join["heads"] != "none",
        )
        outputs.append(projected)
    if len(outputs) < len(calls):  # one pass of the heads serves every call
        outputs *= len(calls)
    return outputs, stats


def head_batches(
    join: str, calls: list[Pairs], used: list[Branch]
) -> list[list[Branch]]:
    """The branches of each pass through the heads: one pass, or one for each call."""
    if join != "call":
        return [used]
    return [in_order(branch for pair in pairs for branch in pair) for pairs in calls]


def encode_targets(
    siamese: Siamese,
    teacher: Tree,
    images: Mapping[Branch, Array],
    calls: list[Pairs],
    online: list[Outputs],
    rng: Array,
) -> tuple[list[Outputs], dict]:
    """(outputs to take targets from, for each of `calls`; what update() needs of them).

    They are the teacher's if there is one, else those of the trained network.
    """
    if not siamese.momentum:
        return online, {}
    targets = in_order(target for pairs in calls for _, target in pairs)
    outputs, stats = branches.teach(
        siamese.network,
        teacher,
        {branch: images[branch] for branch in targets},
        siamese.shuffle,
        rng,
    )
    return [outputs] * len(calls), {"stats": stats}


# --- pictures ------------------------------------------------------------------------


def show(siamese: Siamese, state: TrainState, batch: dict, rng: Array) -> dict:
    """The views and their mixtures as columns for evals/pictures.py."""
    views = batch["views"]
    names = [f"view {i + 1}" for i in range(len(views))]
    columns = dict(zip(names if len(views) > 1 else ["input"], views, strict=True))
    mixes = image_mixtures.make(regrouped(siamese.mixtures, len(views[0])))
    # Twice, since evaluators have a single view and mix_views may want a second.
    mixtures, _ = mix_views(mixes, siamese.pairing, views * 2, rng)
    for name, mixed in mixtures.items():
        one_term = siamese.pairing.branches == "both" and mixed.partner is not None
        columns |= panels(name, mixed, weighted=not one_term)
    return columns


def regrouped(sections: Mapping, batch: int) -> dict:
    """The sections of mixtures with as many groups as a small batch can have.

    See mixtures.for_few.
    """
    return {k: image_mixtures.for_few(v, batch) for k, v in sections.items()}


def panels(name: str, mixed: Mixed, weighted: bool) -> dict:
    """Columns of one mixture for evals/pictures.py, in both orders.

    Below each image stands its weight in the loss: lam, and 1 - lam in reverse order.
    weighted: whether the loss has these two terms.
    """
    images, lam = mixed.images, mixed.lam
    # One mask serves a whole group: [G, H, W] -> [B, H, W].
    share = jnp.repeat(mixed.mask[..., 0], len(images) // len(mixed.mask), axis=0)
    weight = lam if weighted else jnp.ones_like(lam)
    columns = {name: (images, {"lam": lam, "weight": weight})}
    columns[f"{name}: own share"] = share
    if weighted and mixed.partner is not None:
        places = jnp.argsort(mixed.partner, axis=1)  # the inverse permutation
        reversed_images = branches.reordered({"map": images}, places)["map"]
        columns[f"{name} in reverse order"] = reversed_images, {"weight": 1 - lam}
    return columns
