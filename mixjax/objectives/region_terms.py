"""The contrasts between images, mixtures and their regions, in Lam's two approaches.

    q, q_m   embeddings of a view and of its mixture; k the teacher's of the other view
    g, l     means of the mixture's map outside and inside of its box
    k_g, k_l the same of the teacher's map of the other view's mixture
    L(q, k)  MoCo's loss (He et al., 2020, equation 1) with a queue of its own for whole
             images, for insides and for outsides

Source: Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training",
equations 7 and 8, and its code (p-lam/mix-ssl) where the two differ.

Approach 1, where the box of a view shows the other view:
    L(q, k) + lam L(q_m, k) + (1 - lam) [L(l, k_g) + L(l, k_l) + L(g, k_g)]
Approach 2, where it shows the image's partner; R puts queries into partners' order:
    L(q, k) + lam [L(q_m, k) + L(g, k) + L(l, k_l)]
            + (1 - lam) [L(R q_m, k) + L(R g, k) + L(R l, k_l)]

Two things of approach 2 are to be chosen:
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
    turned: str = ""  # what is in reverse order: nothing, "query" or "both"


QUEUES = {"main": "full", "local": "inside", "global": "outside"}  # name: of what keys
CLEAN = {"clean": Term("full", "full", "main", "one")}


def between_views() -> dict[str, Term]:
    """Equation 7."""
    return CLEAN | {
        "mixed": Term("mixed", "full", "main", "lam"),
        "local_global": Term("inside", "outside", "global", "rest"),
        "local_local": Term("inside", "inside", "local", "rest"),
        "global_global": Term("outside", "outside", "global", "rest"),
    }


def within_batch(region_reverse: str, global_positive: str) -> dict[str, Term]:
    """Equation 8; the fields: see above."""
    whole = ("full", "main") if global_positive == "key" else ("outside", "global")
    region = "both" if region_reverse == "consistent" else "query"
    found = dict(CLEAN)
    for name, how, turned in (
        ("mixed", ("mixed", "full", "main"), "query"),
        ("global_global", ("outside", *whole), region),
        ("local_local", ("inside", "inside", "local"), region),
    ):
        found[name] = Term(*how, "lam")
        found[f"{name}_reversed"] = Term(*how, "rest", turned)
    return found


def terms_of(
    approach: int, region_reverse: str, global_positive: str
) -> dict[str, Term]:
    """The terms of an approach by name; UsageError for what it does not have."""
    if approach not in (1, 2):
        raise UsageError(f"method.approach={approach} must be 1 or 2.")
    of = f" with approach={approach}"
    fits = [["none"], ["region"]]
    if approach == 2:
        fits = [["paper", "consistent"], ["key", "region"]]
    check_name(f"method.region_reverse{of}:", region_reverse, fits[0])
    check_name(f"method.global_positive{of}:", global_positive, fits[1])
    if approach == 1:
        return between_views()
    return within_batch(region_reverse, global_positive)


def compared(
    objective: Objective, term: Term, query: dict, key: dict, memory: dict, partner
) -> Array:
    """One term, [B]; query, key: {of what: outputs with "projection" [B, d]}.

    partner: [G, n], or None where nothing is reversed.
    """
    q, k, queue = query[term.query], key[term.key], memory[term.queue]
    if term.turned:
        places = jnp.argsort(partner, axis=1)
        q = reordered(q, places)
        k = reordered(k, places) if term.turned == "both" else k
    # MoCo draws nothing, and keys of all views are alike to it.
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
    """The weighted sum of all terms, and the mean of each without its weight.

    lam: [B]; the others: see compared.
    """
    weight = {"one": jnp.ones_like(lam), "lam": lam, "rest": 1.0 - lam}
    loss, found = jnp.float32(0), {}
    for name, term in terms.items():
        each = compared(objective, term, query, key, memory, partner)  # [B]
        found[f"loss_{name}"] = each.mean()
        loss += (weight[term.weight] * each).mean()
    return loss, found


def remember(objective: Objective, memory: dict, key: dict) -> dict:
    """Every queue with this step's keys."""
    return {
        name: objective.remember(queue, [key[QUEUES[name]]])
        for name, queue in memory.items()
    }
