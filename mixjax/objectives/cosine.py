"""BYOL and SimSiam: the predictor's output should point along the other view's target.

Sources: BYOL (Grill et al., 2020, equation 2), whose target is a teacher's projection,
and SimSiam (Chen and He, 2021, equation 1), whose target is the network's own. No
gradient flows into the target. A comparison is one direction: BYOL sums the two,
SimSiam averages them.
"""

import jax

from mixjax.errors import check_name
from mixjax.objectives.contrast import unit
from mixjax.state import Objective

LOSSES = {
    "distance": lambda cos: 2 - 2 * cos,  # BYOL, equation 2
    "negative": lambda cos: -cos,  # SimSiam, equation 1
}


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
