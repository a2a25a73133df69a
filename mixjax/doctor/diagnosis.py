"""All checks of a recipe in turn; a check that fails does not stop the next ones."""

from collections.abc import Sequence

from mixjax import data, methods, models
from mixjax.chips.targets import Target
from mixjax.data import stand_in
from mixjax.data.reader import Reader
from mixjax.data.views import parse
from mixjax.doctor import other_chips, parts, pictures, space
from mixjax.doctor.findings import Findings
from mixjax.training import build


def diagnose(
    findings: Findings,
    config,
    workdir: str,
    most: int | None,
    targets: Sequence[Target] = (),
) -> None:
    """Adds to `findings` the facts and problems of the run that `config` describes.

    workdir: the run's folder. most: the number of files of each split to decode, see
    pictures.scan. targets: chips to compile the step for; without them, nothing is
    compiled. Leaves no new folder behind.
    """
    mesh = parts.make_mesh(findings, config)
    opened = pictures.open_splits(findings, config.data)
    for source in filter(None, opened):
        pictures.scan(findings, source, most, config.data.threads)
    network = findings.attempt(models.make, config.model)
    if network is None:
        pictures.check_texts(findings, config.data)
        parts.with_batches_that_fit(findings, config, mesh, None)
    else:
        check_run(findings, config, workdir, mesh, opened, network)
        for target in targets:
            source = stand_in.compiling_source(config, opened.train, network.geometry)
            if opened.train is None:
                findings.fact("data", f"{source.size} pictures are assumed")
            other_chips.check(findings, config, source, target)
    space.workdir(findings, config, workdir)


def check_run(findings: Findings, config, workdir: str, mesh, opened, network) -> None:
    """The checks that need a network; opened: the splits that could be opened."""
    parts.describe(findings, config, network)
    method = findings.attempt(methods.make, config.method, network, clock=parts.ANY)
    safe = parts.with_batches_that_fit(findings, config, mesh, method)
    blank = stand_in.source(config, network.geometry)
    source = opened.train or blank
    fits = pictures.fit(findings, config, source, network.geometry, mesh)
    findings.attempt(build.check_classes, config.model, source)
    known = opened.train is not None and source.size >= config.batch

    # Whatever has been refused is replaced from here on by something that fits, so
    # that the later checks report problems of their own, not the same one again.
    size, fields = max(source.size, safe.batch), dict(config.data)
    if not fits:
        source, fields = blank, pictures.fitting(config.data, network.geometry, source)
    if blank.classes:  # the labels that the network expects
        source = source._replace(classes=blank.classes, several=blank.several)
    source, fields["eval_batch"] = source._replace(size=size), safe.data.eval_batch
    context = dict(batch=safe.batch, seed=config.seed, mesh=mesh)
    context["opened"] = source, opened.test if opened.train else source
    sets = data.make(fields, **context)
    run = parts.assemble(findings, safe, mesh, sets, network, method)
    if run is None:
        return
    parts.plan(findings, safe, run, known)
    on_device = known and fields["on_device"]
    data_bytes = picture_bytes(fields, source) if on_device else 0
    space.on_devices(findings, safe, run, data_bytes)
    space.on_disk(findings, safe, run, workdir)
    parts.borrowed(findings, config, run)
    # Not on the devices: evaluators are only constructed, and copying takes long.
    sets = data.make(fields | {"on_device": False}, **context)
    parts.evaluators(findings, config, run, sets, workdir)


def picture_bytes(fields: dict, source) -> int:
    """The bytes of all pictures of `source`, which every device holds a copy of."""
    view = parse(fields["eval_view"], "data.eval_view")
    first = Reader(source, [view], 0).training(0, 0)["images"][0]
    return first.nbytes * source.size
