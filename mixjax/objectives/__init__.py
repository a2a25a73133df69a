"""Losses: the objectives of siamese methods, and terms that other methods share.

`objective.name` is a file of this folder that defines `make`.
"""

from collections.abc import Mapping

from mixjax.config.registry import call, load
from mixjax.state import Clock, Objective


def make(config: Mapping, *, clock: Clock) -> Objective:
    """Builds the objective of a section; UsageError names a field that is wrong."""
    make_objective = load(__name__, config["name"], "objective.name").make
    return call("objective", make_objective, config, clock=clock)
