"""Images from configuration: sources, splits, views, and batches on the devices.

sources        open what data.source names; splits take a part of it
views          parse the view language; *_ops hold its operations
reader         reads and decodes one example on the host
pipeline       batches examples, in an order that depends on (seed, step) alone
datasets       the training and the held-out split of a run, made of all these
check_views    reports views, sources and networks that do not fit together
"""

from collections.abc import Mapping

from mixjax.config.registry import call
from mixjax.data.datasets import Datasets, Settings, Splits
from mixjax.data.pipeline import Data

__all__ = ["Data", "Datasets", "Settings", "Splits", "make"]


def make(config: Mapping, *, opened: Splits | None = None, **extra) -> Datasets:
    """The data sets of config.data; UsageError says which field is missing or wrong.

    opened: the training and the held-out split, used instead of those of data.source.
    extra: batch, seed and mesh of the run.
    """
    return Datasets(call("data", Settings, config, opened=opened, **extra))
