"""The state that a run begins with: new, warm-started, or its own newest checkpoint."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.run import ledger
from mixjax.run.checkpoints import Checkpoints
from mixjax.run.workdir import Workdir
from mixjax.state import Method, TrainState, Variables
from mixjax.training.warm_start import warm_start


def first_state(variables: Variables, optimizer) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables.params,
        opt_state=optimizer.init(variables.params),
        stats=variables.stats,
        teacher=variables.teacher,
        memory=variables.memory,
    )


def make_init(method: Method, optimizer, example: dict) -> Callable:
    """The pure function key -> the state before the first step."""

    def init(key):
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        variables = method.init(key, blank)
        return first_state(variables, optimizer)

    return init


def begin(config, saved: Checkpoints, run, examples: int, workdir: Workdir) -> tuple:
    """(state, notes) of the newest checkpoint, or of a new state if there is none.

    run: the assembled run; `run.layout` holds shapes and shardings, on which the state
    is created or restored. examples: the size of the training set; UsageError if it has
    changed since the run began. A new state's workdir records which run it takes
    weights from, and the step that run had reached.
    """
    restored = saved.resume(run.layout)
    if restored is not None:
        state, notes = restored
        if notes["examples"] != examples:
            raise UsageError(
                f"data.source has {examples} training examples now but had "
                f"{notes['examples']} when this run began; take another --workdir."
            )
        return state, notes
    weights, origin = {}, {}
    if config.init_from:
        weights, origin = warm_start(config, run.layout)
    if workdir.process == 0:
        # Also without an origin: a file of an earlier attempt must not stay.
        ledger.write_origin(workdir.path, origin)
    # Created on its shardings, so that no device ever holds all of a sharded state.
    shardings = jax.tree.map(lambda s: s.sharding, run.layout)
    state = jax.jit(run.init, out_shardings=shardings)(jax.random.key(config.seed))
    new = {kind: overlay(getattr(state, kind), tree) for kind, tree in weights.items()}
    return state.replace(**new), {"window": [], "metrics_bytes": 0, "evaluated": []}


def overlay(tree: dict, leaves: dict) -> dict:
    """`tree` with the leaves of the tree `leaves` in place of its own."""
    replace = lambda old, new: overlay(old, new) if isinstance(new, dict) else new
    return tree | {k: replace(tree[k], v) for k, v in leaves.items()}
