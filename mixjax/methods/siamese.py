"""Siamese pre-training on image mixtures: any objective with any mixture.

    x1, x2, ..    views of the same images
    m             x1 mixed with its partners; lam_i the share of image i in m_i
    L(a, b)       the loss of an objective on two branches: MoCo, SimCLR, BYOL, ...
    loss = L(x1, x2) + lam L(m, x2) + (1 - lam) L(reverse m, x2)

Un-Mix (Shen et al., AAAI 2022, equations 1 to 3) and MixMask (Vishniakov et al., 2022,
equations 2 to 5). `reverse` reorders the outputs of m so that index i holds the mixture
in which image i has the other share: the inverse of the permutation that chose the
partners. It reorders outputs instead of encoding again, which gives the same result as
long as batch statistics do not depend on the order of the batch. Several mixtures each
add their pair of terms (MixMask's MixMask*); erasing has two images instead of two
orders (MixMask, table 4). With branches="both" (Un-Mix, equation 4) the mixtures of x1
and x2 are compared with each other, and lam is not needed.

Codebases differ in these, so they are config fields: which views predict which
(`pairs`), whether directions are summed or averaged (`reduce`), which branches share
BatchNorm statistics (`join`), whether a mixture is also a target (`mixed_as`), which
views a mixture is compared with (`against`), how outputs are reversed (`reverse`).

Departures: in symmetric MoCo the mixture is encoded once, not twice with the same
result, so the running statistics see it once. With more than two views only the first
is mixed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax import mixtures as image_mixtures
from mixjax import objectives
from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.objectives import branches
from mixjax.objectives.branches import Branch, in_order
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
    Variables,
)

PURPOSE = 1 << 30  # keeps the random keys of the method apart from those of the views


class Settings(NamedTuple):
    """What the functions of the method need."""

    network: Network
    objective: Objective  # of the views
    mixed_objective: Objective  # of the mixtures; differs in a few fields at most
    pairing: Pairing
    join_encoder: str  # "none", "all": branches that share batch statistics
    join_heads: str  # "none", "call", "all"
    teacher_momentum: Callable | None  # step -> momentum; None: there is no teacher
    shuffle: bool  # the teacher sees the batch in random order
    mixtures: Mapping  # {name: its fields}


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
    """A siamese method with any mixtures.

    objective: a section for objectives.make; mixed_objective: those of its fields that
    differ in the terms of mixtures. pairing: see Pairing. join: {"encoder": "none" or
    "all", "heads": "none", "call" or "all"}, the branches that are processed in one
    batch and share batch statistics; "call" are those of one term. teacher: {} or
    {"momentum", "rule", "per"} of the moving average that provides the targets;
    shuffle: whether it sees the batch in random order. mixtures: one section per
    mixture, by any name. evaluate: the output that evaluators read, "features" or
    "projection". UsageError names a field that is wrong.
    """
    check_name("method.join.encoder", join["encoder"], ["none", "all"])
    check_name("method.join.heads", join["heads"], ["none", "call", "all"])
    follow = call("method.teacher", momentum, teacher, clock=clock) if teacher else None
    settings = Settings(
        network=network,
        objective=objectives.make(objective, clock=clock),
        mixed_objective=objectives.make({**objective, **mixed_objective}, clock=clock),
        pairing=call("method.pairing", Pairing, pairing).check(),
        join_encoder=join["encoder"],
        join_heads=join["heads"],
        teacher_momentum=follow,
        shuffle=shuffle,
        mixtures=mixtures,
    )
    mixers = image_mixtures.make(mixtures)
    return Method(
        init=functools.partial(init, settings),
        loss=functools.partial(loss, settings, mixers),
        update=functools.partial(update, settings),
        features=branches.reader(network, evaluate),
        show=functools.partial(show, settings),
        together=ALL,
    )


def init(settings: Settings, rng: Array, batch: dict) -> Variables:
    """Parameters, the teacher if there is one, and the memory of the objective."""
    network, views = settings.network, batch["views"]
    if len(views) < 2:
        raise UsageError("data.views: a siamese method needs at least two.")
    params, stats = network.init(rng, views[0])
    forward = lambda p, s, x: network.apply(p, s, x, train=False)[0]
    outputs = jax.eval_shape(forward, params, stats, views[0])
    if "projection" not in outputs:
        raise UsageError("method.name='siamese' needs a section model.projector.")
    memory = settings.objective.init(jax.random.fold_in(rng, PURPOSE), outputs)
    has_teacher = settings.teacher_momentum is not None
    teacher = branches.new_teacher(params, stats) if has_teacher else {}
    return Variables(params, stats, teacher, memory)


def loss(settings: Settings, mixers, params, state, batch: dict, rng: Array):
    """L(x1, x2) and the terms of every mixture: (their sum, Aux)."""
    views, memory = batch["views"], state.memory
    keys = jax.random.split(jax.random.fold_in(rng, PURPOSE), 3)
    mixtures, images = mix(settings, mixers, views, keys[0])
    calls = settings.pairing.calls(len(views), len(mixtures))
    online, target, stats, carry = encode(
        settings, params, state, images, calls, keys[1]
    )
    terms = losses(
        settings.pairing,
        (settings.objective, settings.mixed_objective),
        len(views),
        mixtures,
        online,
        target,
        memory,
        keys[2],
    )
    metrics = {f"loss_{name}": value for name, value in terms.items()}
    metrics |= {f"lam_{name}": mixed.lam.mean() for name, mixed in mixtures.items()}
    metrics |= health(online[0][Branch(0, 0)]["projection"])
    # Only targets of unmixed views are remembered: a mixture is never a key.
    target_views = sorted({j for _, j in calls[0]})
    unmixed_targets = [target[0][j] for j in target_views]
    carry["memory"] = settings.objective.remember(memory, unmixed_targets)
    if "queue" in memory:
        keys_per_step = len(target_views) * len(views[0])
        metrics["queue_age"] = queue_age(memory["queue"], state.step, keys_per_step)
    if settings.teacher_momentum:
        metrics["teacher_distance"] = branches.distance(state.teacher, params)
    return sum(terms.values()), Aux(stats, jax.lax.stop_gradient(carry), metrics)


def mix(
    settings: Settings, mixers: Mapping, views, rng: Array
) -> tuple[dict[str, Mixed], dict[Branch, Array]]:
    """The mixtures of a batch by name, and the images of every branch."""
    images = {Branch(i, 0): x for i, x in enumerate(views)}
    mixtures = {}
    for number, (name, mixer) in enumerate(mixers.items()):
        key = jax.random.fold_in(rng, number)
        first = mixer(key, views[0])
        # The same key for both views, so that masks and partners are the same.
        twins = mixer(key, views[1]) if settings.pairing.branches == "both" else ()
        for i, mixed in enumerate(first):
            mixtures[f"{name}_{i + 1}" if len(first) > 1 else name] = mixed
            images[Branch(0, len(mixtures))] = mixed.images
            if twins:
                images[Branch(1, len(mixtures))] = twins[i].images
    return mixtures, images


def encode(settings: Settings, params, state, images, calls: list[Pairs], rng: Array):
    """Passes all branches through the network, and the targets through the teacher.

    Returns, for each of `calls`, the outputs of the branches that predict and of those
    that are targets; then batch statistics, and what the update needs.
    """
    predicting = {i for pairs in calls for i, _ in pairs}
    targets = in_order(j for pairs in calls for _, j in pairs)
    has_teacher = settings.teacher_momentum is not None
    # Sorted, each view is followed by its mixtures. The order matters: the last branch
    # has the largest weight in the running statistics.
    used = sorted(predicting if has_teacher else predicting | set(targets))
    features, stats = branches.forward(
        settings.network,
        params,
        state.stats,
        {b: {"images": images[b]} for b in used},
        ["encoder"],
        together=settings.join_encoder == "all",
    )
    online, stats = run_heads(settings, params, stats, features, calls, used)
    if not has_teacher:
        return online, online, stats, {}
    target, teacher_stats = branches.teach(
        settings.network,
        state.teacher,
        {b: images[b] for b in targets},
        settings.shuffle,
        rng,
    )
    return online, [target] * len(calls), stats, {"stats": teacher_stats}


def run_heads(settings: Settings, params, stats, features, calls, used):
    """(the heads' outputs for each of `calls`, batch statistics)."""
    heads = [part for part in settings.network.parts if part != "encoder"]
    if settings.join_heads == "call":
        groups = [in_order(b for pair in pairs for b in pair) for pairs in calls]
    else:
        groups = [used]
    outputs = []
    for members in groups:
        inputs = {b: {"features": features[b]["features"]} for b in members}
        together = settings.join_heads != "none"
        group_outputs, stats = branches.forward(
            settings.network, params, stats, inputs, heads, together=together
        )
        outputs.append(group_outputs)
    # Without groups of their own, all calls read the same outputs.
    return outputs if len(outputs) == len(calls) else outputs * len(calls), stats


def update(settings: Settings, state, carry: dict):
    """The state after the optimizer: the new memory, and the teacher a step further."""
    state = state.replace(memory=carry["memory"])
    if settings.teacher_momentum is None:
        return state
    rate = settings.teacher_momentum(state.step - 1)  # the step that has just been made
    teacher = branches.follow(state.teacher, state.params, carry["stats"], rate)
    return state.replace(teacher=teacher)


# --- pictures ------------------------------------------------------------------------


def show(settings: Settings, state, batch: dict, rng: Array) -> dict:
    """Pictures of the views and of every mixture, with lam and the weights of terms."""
    views = batch["views"]
    names = [f"view {i + 1}" for i in range(len(views))]
    names = ["input"] if len(views) == 1 else names
    panels = dict(zip(names, views, strict=True))
    mixers = image_mixtures.make(regrouped(settings.mixtures, len(views[0])))
    # Evaluation has a single view; mixing both views needs two.
    mixtures, _ = mix(settings, mixers, views * 2, rng)
    for name, mixed in mixtures.items():
        twins = settings.pairing.branches == "both" and mixed.partner is not None
        panels |= panels_of(name, mixed, weighted=not twins)
    return panels


def regrouped(sections: Mapping, batch: int) -> dict:
    """Sections of mixtures with groups that suit a small batch of pictures.

    With as many groups as recipes have, an image could be its own partner; here every
    group has at least two images, as far as `batch` allows.
    """

    def fit(fields):
        divisors = [g for g in range(1, batch // 2 + 1) if batch % g == 0]
        groups = max((g for g in divisors if g <= fields["groups"]), default=1)
        return {**fields, "groups": groups}

    return {k: fit(v) if "groups" in v else v for k, v in sections.items()}


def panels_of(name: str, mixed: Mixed, weighted: bool) -> dict:
    """Panels of one mixture in both orders, with the weights of its terms.

    At each index is the mixture that the image is compared through: with weight lam
    and, in reverse order, with weight 1 - lam. weighted: whether the loss has these two
    terms.
    """
    images, lam = mixed.images, mixed.lam
    own_share = jnp.repeat(
        mixed.mask[..., 0], len(images) // len(mixed.mask), axis=0
    )  # [B, H, W]
    weight = lam if weighted else jnp.ones_like(lam)
    panels = {name: (images, {"lam": lam, "weight": weight})}
    panels[f"{name}: own share"] = own_share
    if weighted and mixed.partner is not None:
        inverse = jnp.argsort(mixed.partner, axis=1)
        reversed_images = branches.reordered({"map": images}, inverse)["map"]
        panels[f"{name} in reverse order"] = reversed_images, {"weight": 1 - lam}
    return panels
