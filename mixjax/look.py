"""python -m mixjax.look --workdir=RUN [--beside=RUN] [--config.data.source=folder:DIR]

Draws what a run has learned so far, from its newest checkpoint: what its method does
with pictures (masks or mixtures, which image owns which token, reconstructions), and
where the last layer of its encoder looks, optionally beside another run on the same
pictures: the attention of a transformer, the activation of a convolutional network.
With --points, also a t-SNE plot of the features of so many pictures (needs
scikit-learn).

  --workdir=RUN          the folder of a run
  --beside=RUN           another run to compare maps with; same picture size
  --config.FIELD=VALUE   sets a field, such as --config.data.source=folder:photos
  --count=8              number of pictures
  --points=0             number of points for t-SNE, such as 2000
  --out=DIR              where the figures go; default: RUN/figures/look
"""

from collections.abc import Callable
from pathlib import Path

from mixjax import errors
from mixjax.runtime import cli
from mixjax.training.reopen import Run, open_run

AT_ONCE = 256  # pictures for t-SNE that pass through the network together


def sight(run: Run) -> tuple[str, Callable]:
    """("attention" or "activation", the function that draws it) for an encoder."""
    import jax

    from mixjax.evals import activation, attention

    geometry = run.network.geometry
    shape = (1, *geometry.image_size, geometry.channels)
    image = jax.ShapeDtypeStruct(shape, "float32")
    encode = run.network.encode
    outputs = jax.eval_shape(encode, run.state.params, run.state.stats, image)
    attends = "notes" in outputs  # only layers of attention leave notes
    file = attention if attends else activation
    return ("attention" if attends else "activation"), file.shower(run.network)


def maps(runs: dict[str, Run], count: int, mesh):
    """A sheet that shows where the encoders look, on the same pictures."""
    from mixjax.evals import attention, pictures

    columns = {}
    for name, run in runs.items():
        kind, show = sight(run)
        panels = pictures.painter(show, count, run.sets, mesh)(run.state)
        view = run.sets.eval_view
        images = pictures.to_pixels(panels["images"], view.mean, view.std)
        columns.setdefault("input", images)
        if images.shape != columns["input"].shape:
            raise errors.UsageError("--beside: its pictures have another size.")
        lit = attention.overlay(images, panels["maps"])
        columns[f"{kind}{name}, step {run.step}"] = lit
    return pictures.sheet(columns)


def plane(runs: dict[str, Run], points: int, mesh):
    """A sheet of t-SNE plots of the features of every run."""
    from mixjax.evals import embedding, pictures

    columns = {}
    for name, run in runs.items():
        data = run.sets.test(points) or run.sets.bank(points)
        context = dict(sets=run.sets, method=run.method, mesh=mesh, check=lambda: None)
        context |= dict(
            points=points, perplexity=min(30.0, data.source.size / 4), seed=0
        )
        columns[f"t-SNE{name}, step {run.step}"] = embedding.mapper(**context)(
            run.state
        )
    return pictures.sheet({caption: x[None] for caption, x in columns.items()})


def draw(
    run: Run, beside: Run | None, count: int, points: int, mesh, folder: Path
) -> list[Path]:
    """Writes pictures.png, attention.png or activation.png, and embedding.png.

    points: of embedding.png; 0 leaves it out. Returns the paths.
    """
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
    """The value of an integer flag; UsageError if it is too small or no number."""
    text, least = flags.get(flag, usual), {"count": 1, "points": 0}[flag]
    if not text.isdigit() or int(text) < least:
        what = {"count": "pictures", "points": "points"}[flag]
        raise errors.UsageError(f"--{flag}={text} is not a number of {what}.")
    return int(text)


def run(argv: list[str]) -> int:
    """Draws as the flags (without the program's name) say; returns the exit code."""
    return cli.code(lambda: work(argv))


def work(argv: list[str]) -> None:
    """As run(), but raises the errors that a user is meant to read."""
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
    folder = folder.expanduser()
    for path in draw(run, beside or None, count, points, mesh, folder):
        print(path)


if __name__ == "__main__":
    cli.start(__doc__, run)
