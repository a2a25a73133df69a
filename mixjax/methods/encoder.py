"""An imported encoder, which is not trained further but can be evaluated.

`python -m mixjax.import_weights` turns a file of weights that has neither a decoder nor
a classifier into a run of this method. Evaluators read its features, and other runs
start from it by init_from.

Departures: there is no paper.
"""

from mixjax.errors import UsageError
from mixjax.state import Method, Network, Variables


def make(network: Network) -> Method:
    """A method that only has features; its loss raises UsageError."""

    def init(rng, batch):
        params, stats = network.init(rng, batch["views"][0])
        return Variables(params, stats, teacher={}, memory={})

    def loss(params, state, batch, rng):
        raise UsageError(
            "method.name='encoder' has nothing to train; name this run as init_from of "
            "another recipe."
        )

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=lambda state, batch, rng: {"input": batch["views"][0]},
        together=1,
    )
