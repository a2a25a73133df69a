"""Losses: objectives of siamese methods, chosen by name, and terms of other methods.

`objective.name` is a file of this folder that offers `make`.
"""

import importlib
import pkgutil
from collections.abc import Mapping

from mixjax.errors import check_name
from mixjax.registry import call
from mixjax.schedules import Clock
from mixjax.state import Objective


def make(config: Mapping, *, clock: Clock) -> Objective:
    """Builds the objective of a config section; UsageError names a wrong field."""
    files = [m.name for m in pkgutil.iter_modules(__path__)]
    modules = {n: importlib.import_module(f"{__name__}.{n}") for n in files}
    makers = {n: m.make for n, m in modules.items() if hasattr(m, "make")}
    check_name("objective.name", config["name"], makers)
    return call("objective", makers[config["name"]], config, clock=clock)
