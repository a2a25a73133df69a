"""The loss of views and mixtures, given what a network puts out for each.

    L(a, b)                       an objective on two branches, in one direction or both
    L(x1, x2) + lam L(m, x2) + (1 - lam) L(reverse m, x2)

Un-Mix (Shen et al., AAAI 2022), equations 2 and 3; MixMask (Vishniakov et al., 2022),
equations 2 to 5. m_i holds image i with weight lam and its partner p(i) with 1 - lam,
so image i is also in the mixture at place p^-1(i): `reverse` puts the outputs of m into
that order. To re-order outputs is the same as to encode re-ordered images, as long as
batch statistics do not depend on the order within the batch.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.objectives.branches import Branch, Outputs, reordered
from mixjax.state import Array, Mixed, Objective

Pairs = list[tuple[Branch, Branch]]  # (predicts, is the target)


# --- what is compared with what ------------------------------------------------------


def base_pairs(kind: str, branches: Sequence[Branch], targets: int) -> Pairs:
    """Which branch predicts which, for an objective's loss on `branches`.

    "forward": each two once, the earlier predicts the later; "all": every one
    predicts each other one of the first `targets`.
    """
    order = range(len(branches))
    if kind == "forward":
        numbers = [(i, j) for i in order for j in order if i < j]
    else:
        numbers = [(i, j) for i in order for j in order if i != j and j < targets]
    return [(branches[i], branches[j]) for i, j in numbers]


class Pairing(NamedTuple):
    """Which branches are compared with which.

    pairs, targets: see base_pairs. reduce: "sum" of the comparisons, or their "mean".
    branches: "one" mixes the first view, "both" the first two by the same draw, and
    compares the mixtures with each other. mixed_as, of one branch: with "both" a
    mixture predicts the second view and is predicted by it; with "online" it only
    predicts, the views in `against`, through which no gradient goes. reverse: see
    mixture_loss.
    """

    pairs: str
    targets: int
    reduce: str
    branches: str
    mixed_as: str
    against: tuple[int, ...]
    reverse: str

    def check(self) -> "Pairing":
        """Itself; UsageError if a field is out of its range."""
        check_name("method.pairing.pairs", self.pairs, ["forward", "all"])
        check_name("method.pairing.reduce", self.reduce, ["sum", "mean"])
        check_name("method.pairing.branches", self.branches, ["one", "both"])
        check_name("method.pairing.mixed_as", self.mixed_as, ["both", "online"])
        check_name("method.pairing.reverse", self.reverse, ["both", "target", "none"])
        return self

    @property
    def online_only(self) -> bool:
        return self.branches == "one" and self.mixed_as == "online"

    def calls(self, views: int, mixtures: int) -> list[Pairs]:
        """The pairs of the views as they are, then of every mixture."""
        clean = base_pairs(
            self.pairs, [Branch(i, 0) for i in range(views)], self.targets
        )
        return [clean, *(self.mixed(k + 1) for k in range(mixtures))]

    def mixed(self, k: int) -> Pairs:
        """The pairs of the k-th mixture."""
        if self.online_only:
            return [(Branch(0, k), Branch(j, 0)) for j in self.against]
        other = Branch(1, k if self.branches == "both" else 0)
        return base_pairs(self.pairs, [Branch(0, k), other], 2)

    def share(self, views: int) -> float:
        """The weight of one comparison in a loss on so many views."""
        if self.reduce == "sum":
            return 1.0
        return 1.0 / len(self.calls(views, 0)[0])


# --- the loss ------------------------------------------------------------------------


def compared(
    objective: Objective, online: Outputs, target: Outputs, pairs: Pairs, memory, rng
) -> Array:
    """The sum of an objective's comparisons over `pairs`, [B]; one key for them all."""
    total = 0.0
    for i, j in pairs:
        wanted = objective.target(target[j], memory, rng, j.view)
        found = objective.predict(online[i], memory, rng)
        total += objective.compare(found, wanted, memory)  # [B]
    return total


def mixture_loss(
    objective: Objective,
    online: Outputs,
    target: Outputs,
    pairs: Pairs,
    memory,
    rng,
    mixed: Mixed,
    reverse: str,
) -> Array:
    """lam * compared + (1 - lam) * compared in reverse order, averaged over the batch.

    reverse: "both" re-orders the mixture as what predicts and as what is predicted,
    "target" only the latter (SwAV's mixtures as released); "none" leaves the second
    term out (Lam's text of MoCo with CutMix).
    """
    rngs = jax.random.split(rng)
    loss = mixed.lam * compared(objective, online, target, pairs, memory, rngs[0])
    if mixed.partner is not None and reverse != "none":
        places = jnp.argsort(mixed.partner, axis=1)  # the inverse permutation
        back = lambda outputs: {
            b: reordered(x, places) if b.mixture else x for b, x in outputs.items()
        }
        online, target = back(online) if reverse == "both" else online, back(target)
        other = compared(objective, online, target, pairs, memory, rngs[1])
        loss += (1.0 - mixed.lam) * other
    return loss.mean()


def losses(
    pairing: Pairing,
    objectives_: tuple[Objective, Objective],
    views: int,
    mixtures: Mapping[str, Mixed],
    online: Sequence[Outputs],
    target: Sequence[Outputs],
    memory,
    rng,
) -> dict[str, Array]:
    """The loss of the views and of every mixture; their sum is what is trained on.

    objectives_: for the views as they are, for mixtures. online, target: outputs for
    each of pairing.calls.
    """
    plain, special = objectives_
    calls = pairing.calls(views, len(mixtures))
    keys = [jax.random.fold_in(rng, k) for k in range(len(calls))]
    clean = compared(plain, online[0], target[0], calls[0], memory, keys[0])
    found = {"clean": clean.mean() * pairing.share(views)}
    for k, (name, mixed) in enumerate(mixtures.items(), start=1):
        wanted = target[k]
        if pairing.online_only:
            wanted = jax.lax.stop_gradient(wanted)
        how = special, online[k], wanted, calls[k], memory, keys[k]
        if pairing.branches == "both" and mixed.partner is not None:
            found[name] = compared(*how).mean()
        else:
            found[name] = mixture_loss(*how, mixed, pairing.reverse)
        found[name] *= pairing.share(2)
    return found
