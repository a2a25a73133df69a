"""Methods from configuration: `method.name` is a file of this folder."""

from collections.abc import Mapping

from mixjax.config.registry import call, load
from mixjax.state import Clock, Method, Network


def make(config: Mapping, network: Network, *, clock: Clock) -> Method:
    """Builds the method of config.method; UsageError names a field that is wrong."""
    make_method = load(__name__, config["name"], "method.name").make
    return call("method", make_method, config, network=network, clock=clock)
