"""python -m mixjax.look --workdir=RUN [--beside=RUN] [--config.data.source=folder:DIR]

Draws what a run has learned so far, from its newest checkpoint: what its method makes
of pictures (masks or mixtures, whose token is whose, reconstructions), and where the
last layer of its encoder looks, beside that of another run on the same pictures.

  --workdir=RUN          the folder of a run
  --beside=RUN           another one, for its attention maps; same size of pictures
  --config.FIELD=VALUE   other values, such as --config.data.source=folder:photos
  --count=8              pictures
  --out=DIR              where the drawings go; RUN/figures/look unless given
"""

import sys
from pathlib import Path
from typing import NamedTuple

from mixjax import errors
from mixjax.state import Clock


class Run(NamedTuple):
    """A run as it can be looked at."""

    sets: object
    network: object
    method: object
    state: object
    step: int


def open_run(path: str, field: str, changes: dict, count: int, mesh) -> Run:
    """Rebuilds the run in workdir `path` from its config.json and newest checkpoint."""
    import jax

    from mixjax import checkpoint, data, meshes, methods, models, recipes
    from mixjax.state import TrainState

    saved = Path(path).expanduser() / "config.json"
    if not saved.is_file():
        raise errors.UsageError(f"{field}={path} is not a run: {saved} does not exist.")
    config = recipes.override(recipes.recorded(saved), changes)
    config.data.eval_batch = -(-count // mesh.size) * mesh.size
    sets = data.make(config.data, batch=1, seed=config.seed, mesh=mesh)
    network = models.make(config.model)
    method = methods.make(config.method, network, clock=Clock(1, 1))
    key, example = jax.random.key(config.seed), sets.example(network.geometry)
    variables = jax.eval_shape(method.init, key, example)
    start = {"step": jax.ShapeDtypeStruct((), "int32"), "opt_state": {}}
    blank = TrainState(**start, **variables._asdict())
    layout = meshes.lay_out(mesh, blank, ())
    state, step = checkpoint.load(path, layout, field)
    return Run(sets, network, method, state, step)


def draw(run: Run, beside: Run | None, count: int, mesh, folder: Path) -> list[Path]:
    """Writes pictures.png and attention.png; returns their paths."""
    from mixjax.evals import attention, pictures

    paint = pictures.painter(run.method.show, count, run.sets, mesh)
    panels = pictures.columns(paint(run.state), run.sets.eval_view)
    maps = {}
    for name, one in {"": run, " beside": beside}.items():
        if one is None:
            continue
        show = attention.shower(one.network)
        found = pictures.painter(show, count, one.sets, mesh)(one.state)
        view = one.sets.eval_view
        images = pictures.to_pixels(found["images"], view.mean, view.std)
        maps.setdefault("input", images)
        if images.shape != maps["input"].shape:
            raise errors.UsageError("--beside: its pictures have another size.")
        lit = attention.overlay(images, found["maps"])
        maps[f"attention{name}, step {one.step}"] = lit
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "pictures.png", folder / "attention.png"]
    for path, columns in zip(paths, (panels, maps), strict=True):
        pictures.save(pictures.sheet(columns), path)
    return paths


def run(argv: list[str]) -> int:
    """Draws as the flags (without the program's name) say; returns the exit code."""
    from mixjax import cpu, recipes

    try:
        given = dict(recipes.pairs(argv))
        changes = {k: v for k, v in given.items() if k.startswith("config.")}
        known = ("workdir", "beside", "count", "out")
        for flag in given.keys() - changes.keys():
            errors.check_name("flag", flag, known)
        if "workdir" not in given:
            raise errors.UsageError("--workdir is missing; name the folder of a run.")
        count = given.get("count", "8")
        if not count.isdigit() or int(count) < 1:
            raise errors.UsageError(f"--count={count} is not a number of pictures.")
        cpu.tune()
        from mixjax import meshes

        mesh = meshes.make(fsdp=1)
        how = changes, int(count), mesh
        seen = open_run(given["workdir"], "--workdir", *how)
        beside = "beside" in given and open_run(given["beside"], "--beside", *how)
        folder = Path(given.get("out") or f"{given['workdir']}/figures/look")
        for path in draw(seen, beside or None, int(count), mesh, folder.expanduser()):
            print(path)
        return errors.DONE
    except errors.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.USAGE


if __name__ == "__main__":
    if any(a in ("-h", "-help", "--help") for a in sys.argv[1:]):
        print(__doc__)
        sys.exit(errors.DONE)
    sys.exit(run(sys.argv[1:]))
