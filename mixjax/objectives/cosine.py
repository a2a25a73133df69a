"""BYOL and SimSiam: the predictor's output points where the other view's target does.

Sources: BYOL (Grill et al., 2020, equation 2; the target is a teacher's projection)
and SimSiam (Chen and He, 2021, equation 1; it is the network's own). The target gets
no gradient. A comparison is one direction: BYOL sums both, SimSiam averages them.
"""

import jax

from mixjax.errors import check_name
from mixjax.objectives.contrast import unit
from mixjax.state import Objective

LOSSES = {"distance": lambda cos: 2 - 2 * cos, "negative": lambda cos: -cos}


def make(*, loss: str) -> Objective:
    """loss: "distance", 2 - 2 cos (BYOL), or "negative", -cos (SimSiam)."""
    check_name("objective.loss", loss, LOSSES)

    def predict(outputs, memory, rng):
        return unit(outputs["prediction"])

    def target(outputs, memory, rng, view):
        return jax.lax.stop_gradient(unit(outputs["projection"]))

    def compare(prediction, target, memory):
        return LOSSES[loss]((prediction * target).sum(axis=1))

    return Objective(
        init=lambda rng, outputs: {},
        predict=predict,
        target=target,
        compare=compare,
        remember=lambda memory, targets: memory,
    )
