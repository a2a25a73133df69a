"""A run that has been, opened again from its workdir: to look at, or to evaluate."""

from pathlib import Path
from typing import NamedTuple

from mixjax import errors
from mixjax.config import recipes


class Run(NamedTuple):
    """A run as it can be looked at."""

    config: object
    sets: object
    network: object
    method: object
    state: object
    step: int


def open_run(path: str, field: str, changes: dict, batch: int, mesh) -> Run:
    """Rebuilds the run in workdir `path` from its config.json and newest checkpoint.

    batch: pictures that go through at a time; 0 for as many as the run itself took.
    """
    # Late: whoever only asks for help need not wait for jax.
    import jax

    from mixjax import data, methods, models
    from mixjax.run import checkpoints, console
    from mixjax.sharding import meshes
    from mixjax.state import Clock, TrainState

    console.start()
    saved = Path(path).expanduser() / "config.json"
    if not saved.is_file():
        raise errors.UsageError(f"{field}={path} is not a run: {saved} does not exist.")
    config = recipes.override(recipes.recorded(saved), changes)
    batch = batch or config.data.eval_batch
    config.data.eval_batch = -(-batch // mesh.size) * mesh.size
    sets = data.make(config.data, batch=1, seed=config.seed, mesh=mesh)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(1, 1))
    key, example = jax.random.key(config.seed), sets.example(network.geometry)
    variables = jax.eval_shape(method.init, key, example)
    start = {"step": jax.ShapeDtypeStruct((), "int32"), "opt_state": {}}
    blank = TrainState(**start, **variables._asdict())
    layout = meshes.lay_out(mesh, blank, ())
    state, step = checkpoints.load(path, layout, field)
    return Run(config, sets, network, method, state, step)
