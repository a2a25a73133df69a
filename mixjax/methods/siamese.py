"""Siamese pre-training on image mixtures: any objective with any mixture.

    x1, x2, ..    views of the same images
    m             x1 mixed with its partners; lam_i the share of image i in m_i
    L(a, b)       an objective's loss on two branches: MoCo, SimCLR, BYOL, SimSiam, ...
    loss = L(x1, x2) + lam L(m, x2) + (1 - lam) L(reverse m, x2)

Un-Mix (Shen et al., AAAI 2022, equations 1 to 3) and MixMask (Vishniakov et al., 2022,
equations 2 to 5). `reverse` puts the features of m into the order in which the image
that holds the other share stands at each place: the inverse of the permutation that
chose the partners. It re-orders outputs, it does not encode again; that is the same
as long as batch statistics do not depend on the order of the batch. Several mixtures
add their pairs of terms (MixMask's MixMask*); erasing has two images instead of two
orders (MixMask, table 4). With branches="both" (Un-Mix, equation 4) the mixtures of
x1 and x2 are compared with each other and lam is not needed.

What is a config field because code bases differ: which views predict which (`pairs`),
whether directions are summed or averaged (`reduce`), what shares BatchNorm statistics
(`join`), whether a mixture is also a target (`mixed_as`), which views a mixture is
held against (`against`), how features are re-ordered (`reverse`).

Departures: in symmetric MoCo the mixture is encoded once, not twice with the same
result, so that the running statistics see it once; with more than two views only the
first is mixed.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax import mixtures as image_mixtures
from mixjax import objectives
from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.objectives import branches as sides
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
    Variables,
)

PURPOSE = 1 << 30  # keeps the keys here apart from those of views


def regrouped(sections: Mapping, batch: int) -> dict:
    """Sections of mixtures for a few pictures to look at.

    In as many groups as recipes have an image might be its own partner: here every
    group has two at least, as far as `batch` has them.
    """

    def fit(fields):
        fits = [g for g in range(1, batch // 2 + 1) if batch % g == 0]
        groups = max((g for g in fits if g <= fields["groups"]), default=1)
        return {**fields, "groups": groups}

    return {k: fit(v) if "groups" in v else v for k, v in sections.items()}


def panels(name: str, mixed: Mixed, weighted: bool) -> dict:
    """A mixture for pictures.sheet: in both orders, with the weights of its terms.

    At each place stands the mixture that its image is held in, by lam and, in reverse
    order, by 1 - lam. weighted: whether the loss has two such terms.
    """
    images, lam = mixed.images, mixed.lam
    share = jnp.repeat(mixed.mask[..., 0], len(images) // len(mixed.mask), axis=0)
    weight = lam if weighted else jnp.ones_like(lam)
    found = {name: (images, {"lam": lam, "weight": weight})}
    found[f"{name}: own share"] = share  # [B, H, W]
    if weighted and mixed.partner is not None:
        places = jnp.argsort(mixed.partner, axis=1)
        back = sides.reordered({"map": images}, places)["map"]
        found[f"{name} in reverse order"] = back, {"weight": 1 - lam}
    return found


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

    objective: a section for objectives.make; mixed_objective: its fields that are
    otherwise in the terms of mixtures. pairing: see Pairing. join: {"encoder":
    "none" or "all", "heads": "none", "call" or "all"}, the branches that go through
    together and share batch statistics; "call" are those of one term. teacher: {} or
    {"momentum", "rule", "per"} of the moving average that makes the targets; shuffle:
    it sees the batch in random order. mixtures: a section for each, by any name.
    evaluate: "features" or "projection", what evaluators read.
    """
    pairing = call("method.pairing", Pairing, pairing).check()
    check_name("method.join.encoder", join["encoder"], ["none", "all"])
    check_name("method.join.heads", join["heads"], ["none", "call", "all"])
    plain = objectives.make(objective, clock=clock)
    special = objectives.make({**objective, **mixed_objective}, clock=clock)
    mix = image_mixtures.make(mixtures)
    heads = [part for part in network.parts if part != "encoder"]
    tau = call("method.teacher", momentum, teacher, clock=clock) if teacher else None

    def init(rng, batch):
        views = batch["views"]
        if len(views) < 2:
            raise UsageError("data.views: a siamese method needs at least two.")
        params, stats = network.init(rng, views[0])
        look = lambda p, s, x: network.apply(p, s, x, train=False)[0]
        outputs = jax.eval_shape(look, params, stats, views[0])
        if "projection" not in outputs:
            raise UsageError("method.name='siamese' needs a section model.projector.")
        memory = plain.init(jax.random.fold_in(rng, PURPOSE), outputs)
        copy = sides.new_teacher(params, stats) if tau else {}
        return Variables(params, stats, copy, memory)

    def blend(views, rng, mix) -> tuple[dict[str, Mixed], dict[Branch, Array]]:
        """The mixtures of a batch by name, and the images of all branches."""
        images = {Branch(i, 0): x for i, x in enumerate(views)}
        found = {}
        for number, (name, mixture) in enumerate(mix.items()):
            key = jax.random.fold_in(rng, number)
            # The same key for both views, so the same places and partners.
            first = mixture(key, views[0])
            second = mixture(key, views[1]) if pairing.branches == "both" else ()
            for i, mixed in enumerate(first):
                found[f"{name}_{i + 1}" if len(first) > 1 else name] = mixed
                images[Branch(0, len(found))] = mixed.images
                if second:
                    images[Branch(1, len(found))] = second[i].images
        return found, images

    def see(params, state, images, calls: list[Pairs], rng):
        """For each call the outputs that predict and of the targets; stats, carry."""
        predict = {i for pairs in calls for i, _ in pairs}
        wanted = in_order(j for pairs in calls for _, j in pairs)
        # A view is followed by its mixtures; the last one shows most in running
        # statistics.
        used = sorted(predict if tau else predict | set(wanted))
        inputs = {b: {"images": images[b]} for b in used}
        together = join["encoder"] == "all"
        found, stats = sides.forward(
            network, params, state.stats, inputs, ["encoder"], together=together
        )
        online, together = [], join["heads"] != "none"
        for members in heads_of(calls, used):
            inputs = {b: {"features": found[b]["features"]} for b in members}
            out, stats = sides.forward(
                network, params, stats, inputs, heads, together=together
            )
            online.append(out)
        online = online if len(online) == len(calls) else online * len(calls)
        if not tau:
            return online, online, stats, {}
        seen = {b: images[b] for b in wanted}
        target, new = sides.teach(network, state.teacher, seen, shuffle, rng)
        return online, [target] * len(calls), stats, {"stats": new}

    def heads_of(calls: list[Pairs], used: list[Branch]) -> list[list[Branch]]:
        """Which branches go through the heads in one call."""
        if join["heads"] != "call":
            return [used]
        return [in_order(b for pair in pairs for b in pair) for pairs in calls]

    def loss(params, state, batch, rng):
        views, memory = batch["views"], state.memory
        keys = jax.random.split(jax.random.fold_in(rng, PURPOSE), 3)
        mixtures, images = blend(views, keys[0], mix)
        calls = pairing.calls(len(views), len(mixtures))
        online, target, stats, carry = see(params, state, images, calls, keys[1])
        both = plain, special
        terms = losses(
            pairing, both, len(views), mixtures, online, target, memory, keys[2]
        )
        metrics = {f"loss_{name}": value for name, value in terms.items()}
        metrics |= {f"lam_{name}": mixed.lam.mean() for name, mixed in mixtures.items()}
        clean = sorted({j for _, j in calls[0]})
        carry["memory"] = plain.remember(memory, [target[0][j] for j in clean])
        metrics |= health(online[0][Branch(0, 0)]["projection"])
        if "queue" in memory:
            keys = len(clean) * len(views[0])
            metrics["queue_age"] = queue_age(memory["queue"], state.step, keys)
        if tau:
            metrics["teacher_distance"] = sides.distance(state.teacher, params)
        return sum(terms.values()), Aux(stats, jax.lax.stop_gradient(carry), metrics)

    def update(state, carry):
        state = state.replace(memory=carry["memory"])
        if not tau:
            return state
        follow = tau(state.step - 1)  # the step that has just been made
        new = sides.follow(state.teacher, state.params, carry["stats"], follow)
        return state.replace(teacher=new)

    def show(state, batch, rng):
        views = batch["views"]
        one = len(views) == 1
        names = ["input"] if one else [f"view {i + 1}" for i in range(len(views))]
        found = dict(zip(names, views, strict=True))
        few = image_mixtures.make(regrouped(mixtures, len(views[0])))
        for name, mixed in blend(views * 2, rng, few)[0].items():
            twins = pairing.branches == "both" and mixed.partner is not None
            found |= panels(name, mixed, weighted=not twins)
        return found

    return Method(
        init=init,
        loss=loss,
        update=update,
        features=sides.reader(network, evaluate),
        show=show,
        together=ALL,
    )
