"""All checks of a recipe, in turn; what fails is listed, and the others go on."""

from mixjax import assembly, data, methods, models
from mixjax.data.reader import Reader
from mixjax.data.views import parse
from mixjax.doctor import blank, parts, pictures, room
from mixjax.doctor.findings import Findings


def diagnose(found: Findings, config, workdir: str, most: int | None) -> None:
    """Fills `found` with what there is to say of the run that `config` describes.

    workdir: of the run. most: files of a split to look at, see pictures.scan. Nothing
    is compiled, and no folder stays that was not there.
    """
    mesh = parts.make_mesh(found, config)
    opened = pictures.open_splits(found, config.data)
    for source in filter(None, opened):
        pictures.scan(found, source, most, config.data.threads)
    network = found.attempt(models.make, config.model)
    if network is None:
        pictures.check_texts(found, config.data)
        parts.with_batch_that_fits(found, config, mesh, None)
    else:
        check_run(found, config, workdir, mesh, opened, network)
    room.workdir(found, config, workdir)


def check_run(found: Findings, config, workdir: str, mesh, opened, network) -> None:
    """The checks that need a network; opened: the splits, as far as they are there."""
    parts.describe(found, config, network)
    how = config.method, network
    method = found.attempt(methods.make, *how, clock=parts.ANY)
    safe = parts.with_batch_that_fits(found, config, mesh, method)
    source = opened.train or blank.source(config, network.geometry)
    fields = pictures.fit(found, config, source, network.geometry, mesh)
    found.attempt(assembly.check_classes, config.model, source)
    known = opened.train is not None and source.size >= config.batch

    # From here on whatever has been refused is replaced by what fits.
    classes, several = blank.labels(config)
    source = source._replace(
        size=max(source.size, safe.batch),
        classes=classes or source.classes,
        several=several if classes else source.several,
    )
    held = dict(batch=safe.batch, seed=config.seed, mesh=mesh)
    held["opened"] = source, opened.test if opened.train else source
    run = parts.assemble(found, safe, mesh, data.make(fields, **held), network, method)
    if run is None:
        return
    parts.plan(found, safe, run, known)
    kept = resident(fields, source) if known and fields["on_device"] else 0
    room.on_devices(found, safe, run, kept)
    room.on_disk(found, safe, run, workdir)
    parts.borrowed(found, config, run)
    elsewhere = data.make(fields | {"on_device": False}, **held)
    parts.evaluators(found, config, run, elsewhere, workdir)


def resident(fields: dict, source) -> int:
    """Bytes of all pictures of `source` as every device has them."""
    view = parse(fields["eval_view"], "data.eval_view")
    first = Reader(source, [view], 0).training(0, 0)["images"][0]
    return first.nbytes * source.size
