"""The state that a run begins from: new, borrowed in part, or its own of before."""

import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.export import read_foreign, weights
from mixjax.models import adapt_weights
from mixjax.run import ledger
from mixjax.run.checkpoints import Checkpoints, by_path, taken, warm_start
from mixjax.run.workdir import Workdir, config_of
from mixjax.state import Method, TrainState, Variables

log = logging.getLogger("mixjax")


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
    """(state, notes): the newest checkpoint's, or else a new state's.

    run: what was assembled. Its layout has shapes and shardings: a new state, of its
    init, is born on them, a saved one read there. examples: in the training set, which
    must be as many as before. workdir: notes of which run a new state has weights, and
    how far that run was at this moment.
    """
    found = saved.resume(run.layout)
    if found is not None:
        state, notes = found
        if notes["examples"] != examples:
            raise UsageError(
                f"data.source has {examples} training examples now but had "
                f"{notes['examples']} when this run began; take another --workdir."
            )
        return state, notes
    given, origin = borrow(config, run.layout) if config.init_from else ({}, {})
    if workdir.process == 0:
        ledger.write_origin(workdir.path, origin)
    shardings = jax.tree.map(lambda s: s.sharding, run.layout)
    state = jax.jit(run.init, out_shardings=shardings)(jax.random.key(config.seed))
    new = {kind: overlay(getattr(state, kind), part) for kind, part in given.items()}
    return state.replace(**new), {"window": [], "metrics_bytes": 0, "evaluated": []}


def borrow(config, layout) -> tuple[dict, dict]:
    """What config.init_from, the workdir of a run, has for us, and what that run was.

    Returns {"params", "stats"} and ledger.origin. It may also be a file of weights, of
    our own or of other projects; their origin is not known, {}.
    """
    model, kinds = config.model.to_dict(), ("params", "stats")
    wanted = {kind: getattr(layout, kind) for kind in kinds}
    path = Path(config.init_from).expanduser()
    if not path.is_file():
        old = config_of(config.init_from)["model"]
        fit, cut = adapt_weights.fitter(old, model), adapt_weights.cutter(model)
        given, step = warm_start(config.init_from, wanted, fit, cut)
        return given, ledger.origin(path, step)
    found = read_foreign.read(path, f"init_from={config.init_from}", model)
    trees = dict(zip(kinds, weights.trees(found.arrays), strict=True))
    arrays = lambda kind, part: by_path(trees[kind].get(part, {}))
    fit = adapt_weights.fitter(found.model, model)
    parts, arrays = adapt_weights.cutter(model)(list(trees["params"]), arrays)
    return taken(config.init_from, parts, arrays, wanted, fit, str(path)), {}


def overlay(tree: dict, given: dict) -> dict:
    """`tree` with the leaves of `given` put in."""
    both = lambda old, new: overlay(old, new) if isinstance(new, dict) else new
    return tree | {k: both(tree[k], v) for k, v in given.items()}
