"""The contrasts between images, mixtures and their regions, in Lam's two approaches.

    q, q_m   embeddings of a view and of its mixture; k the teacher's of the other view
    g, l     means of the mixture's map outside and inside of its box
    k_g, k_l the same means of the teacher's map of the other view's mixture
    L(q, k)  MoCo's loss (He et al., 2020, equation 1) with a queue of its own for whole
             images, for insides and for outsides

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training",
equations 7 and 8, and its code (p-lam/mix-ssl) where the two differ.

Approach 1, where the box of a view shows the other view:
    L(q, k) + lam L(q_m, k) + (1 - lam) [L(l, k_g) + L(l, k_l) + L(g, k_g)]
Approach 2, where it shows the image's partner; R puts queries into partners' order:
    L(q, k) + lam [L(q_m, k) + L(g, k) + L(l, k_l)]
            + (1 - lam) [L(R q_m, k) + L(R g, k) + L(R l, k_l)]

Approach 2 leaves two choices:
- global_positive: "key", g finds k in the queue of whole images (code: two queues);
  "region", g finds k_g in a queue of outsides (paper: three).
- region_reverse: "paper" as above. The box of m_i shows i's partner, so (R l)_i is
  image i but its positive is the partner, and the other way round for (R g)_i: both
  terms pull different images together. "consistent" puts their keys into the same
  order; L(R q_m, k) is right as it is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.objectives.branches import reordered
from mixjax.state import Array, Objective


class Term(NamedTuple):
    """One contrast: which query finds which key in which queue."""

    query: str  # "full", "mixed", "outside" or "inside"
    key: str  # "full", "outside" or "inside"
    queue: str  # see QUEUES
    weight: str  # "one", "lam", or "rest" for 1 - lam
    turned: str = ""  # the sides in reverse order: none, "query" or "both"


QUEUES = {"main": "full", "local": "inside", "global": "outside"}  # name: kind of key
CLEAN = {"clean": Term("full", "full", "main", "one")}


def between_views() -> dict[str, Term]:
    """The terms of approach 1, equation 7."""
    return CLEAN | {
        "mixed": Term("mixed", "full", "main", "lam"),
        "local_global": Term("inside", "outside", "global", "rest"),
        "local_local": Term("inside", "inside", "local", "rest"),
        "global_global": Term("outside", "outside", "global", "rest"),
    }


def within_batch(region_reverse: str, global_positive: str) -> dict[str, Term]:
    """The terms of approach 2, equation 8; the arguments: see above."""
    positive = ("full", "main") if global_positive == "key" else ("outside", "global")
    region_turned = "both" if region_reverse == "consistent" else "query"
    terms = dict(CLEAN)
    for name, contrast, turned in (
        ("mixed", ("mixed", "full", "main"), "query"),
        ("global_global", ("outside", *positive), region_turned),
        ("local_local", ("inside", "inside", "local"), region_turned),
    ):
        terms[name] = Term(*contrast, "lam")
        terms[f"{name}_reversed"] = Term(*contrast, "rest", turned)
    return terms


def terms_of(
    approach: int, region_reverse: str, global_positive: str
) -> dict[str, Term]:
    """The terms of an approach by name; UsageError for a choice it does not have."""
    if approach not in (1, 2):
        raise UsageError(f"method.approach={approach} must be 1 or 2.")
    reverses, positives = ["none"], ["region"]
    if approach == 2:
        reverses, positives = ["paper", "consistent"], ["key", "region"]
    suffix = f" with approach={approach}:"
    check_name(f"method.region_reverse{suffix}", region_reverse, reverses)
    check_name(f"method.global_positive{suffix}", global_positive, positives)
    if approach == 1:
        return between_views()
    return within_batch(region_reverse, global_positive)


def compared(
    objective: Objective, term: Term, query: dict, key: dict, memory: dict, partner
) -> Array:
    """The loss of one term, [B].

    query, key: {kind: outputs with "projection" [B, d]}, the kinds as in Term.
    partner: [G, n], or None if no term is reversed.
    """
    q, k, queue = query[term.query], key[term.key], memory[term.queue]
    if term.turned:
        places = jnp.argsort(partner, axis=1)  # the inverse permutation
        q = reordered(q, places)
        k = reordered(k, places) if term.turned == "both" else k
    # No key and any view number: MoCo draws nothing and treats all views alike.
    q, k = objective.predict(q, queue, None), objective.target(k, queue, None, 1)
    return objective.compare(q, k, queue)


def total(
    objective: Objective,
    terms: Mapping[str, Term],
    query: dict,
    key: dict,
    memory: dict,
    lam: Array,
    partner: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """(the weighted sum of all terms, the mean of each without its weight).

    lam: [B]; the other arguments: see compared.
    """
    weight = {"one": jnp.ones_like(lam), "lam": lam, "rest": 1.0 - lam}
    loss, metrics = jnp.float32(0), {}
    for name, term in terms.items():
        each = compared(objective, term, query, key, memory, partner)  # [B]
        metrics[f"loss_{name}"] = each.mean()
        loss += (weight[term.weight] * each).mean()
    return loss, metrics


def remember(objective: Objective, memory: dict, key: dict) -> dict:
    """The queues after this step's keys have been written."""
    return {
        name: objective.remember(queue, [key[QUEUES[name]]])
        for name, queue in memory.items()
    }
