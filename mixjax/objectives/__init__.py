"""Losses: objectives of siamese methods, chosen by name, and terms of other methods.

`objective.name` names a file of this folder that has a function `make`.
"""

from collections.abc import Mapping

from mixjax.config.registry import call, makers
from mixjax.errors import check_name
from mixjax.state import Clock, Objective


def make(config: Mapping, *, clock: Clock) -> Objective:
    """Builds the objective of a config section; UsageError names a wrong field."""
    known = makers(__name__)
    check_name("objective.name", config["name"], known)
    return call("objective", known[config["name"]], config, clock=clock)
