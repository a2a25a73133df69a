"""The data of a recipe: whether it exists, can be read, and fits the views."""

import itertools
import time
from typing import NamedTuple

import grain
import numpy as np

from mixjax import data
from mixjax.data import decode, sources, splits, stand_in
from mixjax.data.source import MissingSplit, Source
from mixjax.data.views import parse
from mixjax.doctor.findings import Findings
from mixjax.errors import UsageError
from mixjax.state import Geometry

FEW, SECONDS = 1000, 3.0  # the default number of files per split, and time for them
NAMED = 3  # unreadable files that a problem names


class Opened(NamedTuple):
    """The splits of config.data; None for one that cannot be opened."""

    train: Source | None
    test: Source | None


def how_many(text: str) -> int | None:
    """The value of --scan as a number of files; None: as many as SECONDS allow."""
    if text in ("few", "all"):
        # More than any data set has, since scan() takes the smaller of the two.
        return {"few": None, "all": stand_in.SIZE**2}[text]
    if not text.isdigit():
        raise UsageError(f"--scan={text} is neither a number of files nor 'all'.")
    return int(text)


def open_splits(findings: Findings, fields) -> Opened:
    """Opens both splits of config.data and reports what they contain."""
    for name in ("split", "eval_split"):
        findings.attempt(splits.parse, fields[name], f"data.{name}")
    train = findings.attempt(
        sources.open_source, fields.source, fields.split, fields.directory
    )
    if train is None:
        findings.fact(
            "data", f"{fields.source} cannot be opened; blank pictures replace it below"
        )
        return Opened(None, None)
    findings.fact("data", f"training: {describe(train)}")
    try:
        test = sources.open_source(
            fields.source, fields.eval_split, fields.directory, "data.eval_split"
        )
    except MissingSplit:
        findings.fact("data", f"held out: there is no split {fields.eval_split!r}")
        return Opened(train, None)
    except UsageError as error:
        findings.problem(str(error))
        return Opened(train, None)
    findings.fact("data", f"held out: {describe(test)}")
    return Opened(train, test)


def describe(source: Source) -> str:
    """The name, size and classes of a source as one phrase."""
    labels = f"{source.classes} classes" if source.classes else "no labels"
    several = ", several per picture" if source.several else ""
    return f"{source.name}, {source.size} examples, {labels}{several}"


def scan(findings: Findings, source: Source, most: int | None, threads: int) -> None:
    """Decodes files spread evenly over `source`, and reports those that fail.

    most: their number; None for FEW, or as many as SECONDS allow.
    """
    if source.images is not None:
        findings.fact("files", f"{source.name}: {source.size} pictures in one array")
        return
    hurry = most is None
    broken, tried = look(source, min(most or FEW, source.size), hurry, threads)
    findings.fact("files", f"{source.name}: {tried} of {source.size} decoded")
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        findings.problem(
            f"data.source: {len(broken)} of {tried} files of {source.name} that were "
            f"tried cannot be read: {'; '.join(broken[:NAMED])}{more}; repair or "
            f"remove them, since a run skips them."
        )


def look(
    source: Source, count: int, hurry: bool, threads: int
) -> tuple[list[str], int]:
    """(the names of files that cannot be decoded, the number of files tried).

    hurry: whether to stop after SECONDS.
    """
    places = np.arange(count) * source.size // max(count, 1)
    if hurry:  # shuffled, so that those tried in time still spread over the whole
        places = np.random.default_rng(0).permutation(places)

    def complaint(nth):  # "" for a file that can be decoded
        place = int(places[nth])
        try:
            picture, _ = source.read(place)
            if isinstance(picture, bytes):
                decode.pixels(picture, 3)
        except (decode.Unreadable, OSError) as error:
            return f"{source.title(place)} ({error})"
        return ""

    end = time.monotonic() + SECONDS if hurry else float("inf")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    results = grain.MapDataset.range(count).map(complaint).to_iter_dataset(options)
    complaints = list(itertools.takewhile(lambda _: time.monotonic() < end, results))
    return [text for text in complaints if text], len(complaints)


def fitting(fields, geometry: Geometry, source: Source) -> dict:
    """config.data with views that turn any picture into what the network expects."""
    height, width = geometry.image_size
    if any(parse(view, "data.views").scene for view in fields.views):
        return dict(fields) | of_scenes(fields, max(height, width))
    # Arrays with other channels than a file can have are resized, not decoded.
    view = f"resize(({height}, {width}))"
    if source.images is None or geometry.channels in (1, 3):
        channels = 1 if geometry.channels == 1 else 3
        side = max(height, width)
        view = f"decode_center(({height}, {width}), {side}, channels={channels})"
    views = dict(views=(view,) * len(fields.views), eval_view=view)
    return dict(fields) | views | dict(eval_split="test", on_device=False)


def of_scenes(fields, side: int) -> dict:
    """The fields of fitting() for scenes, whose views transform boxes or maps, too."""
    view = f"short_side(({side},), longest={side}, canvas={side})"
    if fields.views[0].startswith("segment"):
        view = f"segment_crop({side})"
    whole = f"fit({side}, longest={side}, canvas={side})"
    views = dict(views=(view,) * len(fields.views), eval_view=whole)
    return views | dict(eval_split="test", on_device=False)


def fit(findings: Findings, config, source: Source, geometry: Geometry, mesh) -> bool:
    """Whether config.data and its views fit `source` and the network.

    Each view is tried among others that fit, so that every misfit is reported.
    """
    fields, safe = config.data, fitting(config.data, geometry, source)
    context = dict(seed=config.seed, mesh=mesh, opened=(source, None))
    fits = [
        findings.holds(data.make, section, batch=config.batch, **context)
        for section in (fields, safe)
    ]
    sections, others = [], safe["views"]
    for i, view in enumerate(fields.views):
        sections.append(safe | {"views": (*others[:i], view, *others[i + 1 :])})
    sections.append(safe | {"eval_view": fields.eval_view})
    for section in sections:
        make_example = lambda section=section: data.make(
            section, batch=1, **context
        ).example(geometry)
        fits.append(findings.holds(make_example))
    return all(fits)


def check_texts(findings: Findings, fields) -> None:
    """Checks the syntax of views, where no network tells the size they should have."""
    for i, view in enumerate(fields.views):
        findings.attempt(parse, view, f"data.views[{i}]")
    findings.attempt(parse, fields.eval_view, "data.eval_view")
