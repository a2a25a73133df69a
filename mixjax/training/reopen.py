"""Reopens a run from its workdir, to evaluate it or to draw its features."""

from pathlib import Path
from typing import NamedTuple

from mixjax import errors
from mixjax.config import recipes


class Run(NamedTuple):
    """A run's data, network, method and state at its newest checkpoint."""

    config: object
    sets: object
    network: object
    method: object
    state: object  # opt_state is {}
    step: int


def open_run(path: str, field: str, changes: dict, batch: int, mesh) -> Run:
    """Rebuilds the run in workdir `path` from its config.json and newest checkpoint.

    field: what `path` is called in an error message, such as "--workdir". changes:
    values that replace fields of the recorded config. batch: the number of examples
    evaluated at a time, rounded up to a multiple of the devices; 0 for that of the run.
    Raises UsageError if the folder is not a run or its checkpoint does not fit.
    """
    # Imported here, so that --help and wrong flags need not wait for jax.
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
    # No training step is taken: any training batch and length of the run will do.
    sets = data.make(config.data, batch=1, seed=config.seed, mesh=mesh)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(1, 1))
    # Only shapes: the arrays come from the checkpoint. Those of the optimizer, often
    # twice as large as the parameters, are left out.
    key, example = jax.random.key(config.seed), sets.example(network.geometry)
    variables = jax.eval_shape(method.init, key, example)
    empty_fields = {"step": jax.ShapeDtypeStruct((), "int32"), "opt_state": {}}
    shapes = TrainState(**empty_fields, **variables._asdict())
    # Replicated: no rule splits a tensor.
    layout = meshes.lay_out(mesh, shapes, ())
    state, step = checkpoints.load(path, layout, field)
    return Run(config, sets, network, method, state, step)
