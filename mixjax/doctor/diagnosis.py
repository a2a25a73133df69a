"""All checks of a recipe, in turn; what fails is listed, and the others go on."""

from mixjax import data, methods, models
from mixjax.data.reader import Reader
from mixjax.data.views import parse
from mixjax.doctor import parts, pictures, placeholder_data, space
from mixjax.doctor.findings import Findings
from mixjax.training import build


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
        parts.with_batches_that_fit(found, config, mesh, None)
    else:
        check_run(found, config, workdir, mesh, opened, network)
    space.workdir(found, config, workdir)


def check_run(found: Findings, config, workdir: str, mesh, opened, network) -> None:
    """The checks that need a network; opened: the splits, as far as they are there."""
    parts.describe(found, config, network)
    how = config.method, network
    method = found.attempt(methods.make, *how, clock=parts.ANY)
    safe = parts.with_batches_that_fit(found, config, mesh, method)
    made = placeholder_data.source(config, network.geometry)
    source = opened.train or made
    fits = pictures.fit(found, config, source, network.geometry, mesh)
    found.attempt(build.check_classes, config.model, source)
    known = opened.train is not None and source.size >= config.batch

    # From here on whatever has been refused is replaced by what fits.
    size, fields = max(source.size, safe.batch), dict(config.data)
    if not fits:
        source, fields = made, pictures.fitting(config.data, network.geometry, source)
    if made.classes:
        source = source._replace(classes=made.classes, several=made.several)
    source, fields["eval_batch"] = source._replace(size=size), safe.data.eval_batch
    held = dict(batch=safe.batch, seed=config.seed, mesh=mesh)
    held["opened"] = source, opened.test if opened.train else source
    run = parts.assemble(found, safe, mesh, data.make(fields, **held), network, method)
    if run is None:
        return
    parts.plan(found, safe, run, known)
    kept = resident(fields, source) if known and fields["on_device"] else 0
    space.on_devices(found, safe, run, kept)
    space.on_disk(found, safe, run, workdir)
    parts.borrowed(found, config, run)
    elsewhere = data.make(fields | {"on_device": False}, **held)
    parts.evaluators(found, config, run, elsewhere, workdir)


def resident(fields: dict, source) -> int:
    """Bytes of all pictures of `source` as every device has them."""
    view = parse(fields["eval_view"], "data.eval_view")
    first = Reader(source, [view], 0).training(0, 0)["images"][0]
    return first.nbytes * source.size
