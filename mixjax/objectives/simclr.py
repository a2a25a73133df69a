"""SimCLR: an embedding finds that of the other view among those of the batch.

Source: Chen et al., 2020 (equation 1, NT-Xent). Both sides get the gradient. A
comparison is one direction: the method averages the two (as Un-Mix's base code does;
the paper too, but not google-research/simclr, which sums).
"""

import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.objectives.contrast import among, products, unit
from mixjax.state import Objective

Array = jax.Array
CANDIDATES = ("both", "targets")


def make(*, temperature: float, candidates: str) -> Objective:
    """candidates: "both", the B targets and the B - 1 other predictions (the paper);
    "targets", the targets alone."""
    check_name("objective.candidates", candidates, CANDIDATES)

    def embed(outputs, memory, rng, view=None):
        return unit(outputs["projection"])

    def compare(prediction, target, memory):
        function = nt_xent if candidates == "both" else among
        return function(prediction, target, temperature)

    return Objective(
        init=lambda rng, outputs: {},
        predict=embed,
        target=embed,
        compare=compare,
        remember=lambda memory, targets: memory,
    )


def nt_xent(a: Array, b: Array, temperature: float) -> Array:
    """Cross-entropy of b_i among all b_j and all a_j but a_i; unit [B, d] -> [B]."""
    cross = products(a, b) / temperature  # [B, B]
    itself = jnp.eye(len(a), dtype=bool)
    own = jnp.where(itself, -jnp.inf, products(a, a) / temperature)
    logits = jnp.concatenate([cross, own], axis=1)  # [B, 2 B]
    return jax.nn.logsumexp(logits, axis=1) - (a * b).sum(axis=1) / temperature
