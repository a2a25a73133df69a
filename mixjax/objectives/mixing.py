"""The loss of views and mixtures, given a network's outputs for each of them.

    L(a, b)                       an objective on two branches, in one direction or both
    L(x1, x2) + lam L(m, x2) + (1 - lam) L(reverse m, x2)

Un-Mix (Shen et al., AAAI 2022), equations 2 and 3; MixMask (Vishniakov et al., 2022),
equations 2 to 5. m_i holds image i with weight lam and its partner p(i) with 1 - lam,
so image i is also in the mixture at place p^-1(i): `reverse` puts the outputs of m into
that order. Re-ordering outputs equals encoding re-ordered images as long as batch
statistics do not depend on the order within the batch.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.objectives.branches import Branch, Outputs, reordered
from mixjax.state import Array, Mixed, Objective

Pairs = list[tuple[Branch, Branch]]  # (the branch that predicts, its target)


# --- which branches are compared -----------------------------------------------------


def base_pairs(kind: str, branches: Sequence[Branch], targets: int) -> Pairs:
    """The pairs of `branches` that an objective's loss compares.

    kind: "forward", every pair once, the earlier branch predicting the later; "all",
    every branch predicts every other one among the first `targets`.
    """
    order = range(len(branches))
    if kind == "forward":
        numbers = [(i, j) for i in order for j in order if i < j]
    else:
        numbers = [(i, j) for i in order for j in order if i != j and j < targets]
    return [(branches[i], branches[j]) for i, j in numbers]


class Pairing(NamedTuple):
    """Which branches are compared with which.

    pairs, targets: see base_pairs. reduce: the "sum" of the comparisons, or their
    "mean". branches: "one" mixes the first view; "both" mixes the first two views with
    the same draw and compares the mixtures with each other. mixed_as, where one branch
    is mixed: with "both" a mixture predicts the second view and is predicted by it;
    with "online" it only predicts the views in `against`, which get no gradient.
    reverse: see mixture_loss.
    """

    pairs: str
    targets: int
    reduce: str
    branches: str
    mixed_as: str
    against: tuple[int, ...]
    reverse: str

    def check(self) -> "Pairing":
        """Returns itself; UsageError names a field whose value does not exist."""
        check_name("method.pairing.pairs", self.pairs, ["forward", "all"])
        check_name("method.pairing.reduce", self.reduce, ["sum", "mean"])
        check_name("method.pairing.branches", self.branches, ["one", "both"])
        check_name("method.pairing.mixed_as", self.mixed_as, ["both", "online"])
        check_name("method.pairing.reverse", self.reverse, ["both", "target", "none"])
        return self

    @property
    def online_only(self) -> bool:
        """Whether mixtures predict, but are never targets."""
        return self.branches == "one" and self.mixed_as == "online"

    def calls(self, views: int, mixtures: int) -> list[Pairs]:
        """The pairs of the clean views, followed by those of each mixture."""
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
        """The weight of one comparison in a loss on `views` branches."""
        if self.reduce == "sum":
            return 1.0
        return 1.0 / len(self.calls(views, 0)[0])


# --- the loss ------------------------------------------------------------------------


def compared(
    objective: Objective, online: Outputs, target: Outputs, pairs: Pairs, memory, rng
) -> Array:
    """The sum of an objective's comparisons over `pairs`, [B].

    All of them get the same key: W-MSE must whiten both sides in the same sub-batches.
    """
    total = 0.0
    for i, j in pairs:
        goal = objective.target(target[j], memory, rng, j.view)
        prediction = objective.predict(online[i], memory, rng)
        total += objective.compare(prediction, goal, memory)  # [B]
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

    Un-Mix, equations 2 and 3. reverse: "both" re-orders the mixture where it predicts
    and where it is the target, "target" only where it is the target (SwAV's mixtures
    as released); "none" leaves out the second term (MoCo with CutMix in Lam's paper).
    """
    own_rng, reverse_rng = jax.random.split(rng)
    loss = mixed.lam * compared(objective, online, target, pairs, memory, own_rng)
    if mixed.partner is not None and reverse != "none":
        # Image i is the partner at place p^-1(i), so that place moves to i.
        places = jnp.argsort(mixed.partner, axis=1)  # [G, n]
        reversed_ = lambda outputs: {
            branch: reordered(x, places) if branch.mixture else x
            for branch, x in outputs.items()
        }
        online = reversed_(online) if reverse == "both" else online
        target = reversed_(target)
        other = compared(objective, online, target, pairs, memory, reverse_rng)
        loss += (1.0 - mixed.lam) * other
    return loss.mean()


def losses(
    pairing: Pairing,
    objectives: tuple[Objective, Objective],
    views: int,
    mixtures: Mapping[str, Mixed],
    online: Sequence[Outputs],
    target: Sequence[Outputs],
    memory,
    rng,
) -> dict[str, Array]:
    """The losses of the clean views and of each mixture, by name; training adds them.

    objectives: that of the clean views and that of mixtures. online, target: outputs
    for each of pairing.calls.
    """
    clean_objective, mixed_objective = objectives
    calls = pairing.calls(views, len(mixtures))
    keys = [jax.random.fold_in(rng, k) for k in range(len(calls))]
    clean = compared(clean_objective, online[0], target[0], calls[0], memory, keys[0])
    terms = {"clean": clean.mean() * pairing.share(views)}
    for k, (name, mixed) in enumerate(mixtures.items(), start=1):
        targets = target[k]
        if pairing.online_only:
            # Also where the objective lets gradients into targets, as SimCLR does.
            targets = jax.lax.stop_gradient(targets)
        comparison = mixed_objective, online[k], targets, calls[k], memory, keys[k]
        if pairing.branches == "both" and mixed.partner is not None:
            # Un-Mix, equation 4: both sides are mixed alike, so lam drops out.
            term = compared(*comparison).mean()
        else:
            term = mixture_loss(*comparison, mixed, pairing.reverse)
        # A mixture is always compared as one of two branches, however many views.
        terms[name] = term * pairing.share(2)
    return terms
