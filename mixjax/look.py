"""python -m mixjax.look --workdir=RUN [--beside=RUN] [--config.data.source=folder:DIR]

Draws what a run has learned so far, from its newest checkpoint: what its method makes
of pictures (masks or mixtures, whose token is whose, reconstructions), and where the
last layer of its encoder looks, beside that of another run on the same pictures: the
attention of a transformer, the activation of a residual network. With --points, how
its features of so many pictures lie in the plane, too (t-SNE; needs scikit-learn).

  --workdir=RUN          the folder of a run
  --beside=RUN           another one, for its maps; same size of pictures
  --config.FIELD=VALUE   other values, such as --config.data.source=folder:photos
  --count=8              pictures
  --points=0             points of t-SNE, such as 2000
  --out=DIR              where the drawings go; RUN/figures/look unless given
"""

from collections.abc import Callable
from pathlib import Path

from mixjax import errors
from mixjax.runtime import cli
from mixjax.training.reopen import Run, open_run

AT_ONCE = 256  # pictures of t-SNE that go through the network together


def sight(run: Run) -> tuple[str, Callable]:
    """("attention" or "activation", what shows it) of the run's encoder."""
    import jax

    from mixjax.evals import activation, attention

    geometry = run.network.geometry
    shape = (1, *geometry.image_size, geometry.channels)
    image = jax.ShapeDtypeStruct(shape, "float32")
    encode = run.network.encode
    outputs = jax.eval_shape(encode, run.state.params, run.state.stats, image)
    attends = "notes" in outputs  # what layers of attention note of themselves
    file = attention if attends else activation
    return ("attention" if attends else "activation"), file.shower(run.network)


def maps(runs: dict[str, Run], count: int, mesh):
    """A page of where the encoders look, on the same pictures."""
    from mixjax.evals import attention, pictures

    columns = {}
    for name, one in runs.items():
        kind, show = sight(one)
        panels = pictures.painter(show, count, one.sets, mesh)(one.state)
        view = one.sets.eval_view
        images = pictures.to_pixels(panels["images"], view.mean, view.std)
        columns.setdefault("input", images)
        if images.shape != columns["input"].shape:
            raise errors.UsageError("--beside: its pictures have another size.")
        lit = attention.overlay(images, panels["maps"])
        columns[f"{kind}{name}, step {one.step}"] = lit
    return pictures.sheet(columns)


def plane(runs: dict[str, Run], points: int, mesh):
    """A page of features in the plane."""
    from mixjax.evals import embedding, pictures

    columns = {}
    for name, one in runs.items():
        data = one.sets.test(points) or one.sets.bank(points)
        context = dict(sets=one.sets, method=one.method, mesh=mesh, check=lambda: None)
        context |= dict(
            points=points, perplexity=min(30.0, data.source.size / 4), seed=0
        )
        columns[f"t-SNE{name}, step {one.step}"] = embedding.mapper(**context)(
            one.state
        )
    return pictures.sheet({caption: x[None] for caption, x in columns.items()})


def draw(
    run: Run, beside: Run | None, count: int, points: int, mesh, folder: Path
) -> list[Path]:
    """Writes pictures.png, attention.png or activation.png, and embedding.png if there
    are to be points; returns their paths."""
    from mixjax.evals import pictures

    runs = {"": run} | ({" beside": beside} if beside else {})
    paint = pictures.painter(run.method.show, count, run.sets, mesh)
    pages = {"pictures": pictures.page(paint(run.state), run.sets.eval_view)}
    pages[sight(run)[0]] = maps(runs, count, mesh)
    if points:
        pages["embedding"] = plane(runs, points, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in pages]
    for path, page in zip(paths, pages.values(), strict=True):
        pictures.save(page, path)
    return paths


def number(flags: dict, flag: str, usual: str) -> int:
    """The value of a flag that is a whole number; UsageError if it is too small."""
    text, least = flags.get(flag, usual), {"count": 1, "points": 0}[flag]
    if not text.isdigit() or int(text) < least:
        what = {"count": "pictures", "points": "points"}[flag]
        raise errors.UsageError(f"--{flag}={text} is not a number of {what}.")
    return int(text)


def run(argv: list[str]) -> int:
    """Draws as the flags (without the program's name) say; returns the exit code."""
    return cli.code(lambda: work(argv))


def work(argv: list[str]) -> None:
    """As run(), but raises what a user is meant to read."""
    from mixjax.runtime import cpu_settings

    known = ("workdir", "beside", "count", "points", "out")
    flags, changes = cli.flags(argv, known)
    workdir = cli.need(flags, "workdir", "name the folder of a run")
    count = number(flags, "count", "8")
    points = number(flags, "points", "0")
    cpu_settings.tune()
    from mixjax.sharding import meshes

    mesh = meshes.make(fsdp=1)
    settings = changes, max(count, min(points, AT_ONCE)), mesh
    run = open_run(workdir, "--workdir", *settings)
    beside = "beside" in flags and open_run(flags["beside"], "--beside", *settings)
    folder = Path(flags.get("out") or f"{workdir}/figures/look")
    much = count, points, mesh, folder.expanduser()
    for path in draw(run, beside or None, *much):
        print(path)


if __name__ == "__main__":
    cli.start(__doc__, run)
