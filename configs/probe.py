"""A linear probe on cached features, HTDT's protocol, for small sets.

    python -m mixjax.evaluate --workdir=RUN --evals=configs/probe.py
    variants: :epochs=500

Adam, 1e-2 to 1e-6 over 500 epochs, batches of 1000, L2 5e-6; accuracy after the last.
"""

from configs import common
from configs.common import ConfigDict


def get_config(arg=""):
    v = common.arguments(arg, epochs=500)
    c = ConfigDict()
    c.probe = ConfigDict()
    c.probe.name = "probe"
    c.probe.every_epochs, c.probe.at_start = 0.0, True
    c.probe.epochs, c.probe.batch = v.epochs, 1000
    c.probe.first_rate, c.probe.last_rate = 1e-2, 1e-6
    c.probe.weight_decay, c.probe.seed = 5e-6, 0
    c.probe.bank, c.probe.queries = 0, 0
    return c
