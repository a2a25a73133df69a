"""The data of a recipe: whether it is there, can be read, and fits the views."""

import itertools
import time
from typing import NamedTuple

import grain
import numpy as np

from mixjax import data
from mixjax.data import decode, sources, splits
from mixjax.data.source import MissingSplit, Source
from mixjax.data.views import parse
from mixjax.doctor import placeholder_data
from mixjax.doctor.findings import Findings
from mixjax.errors import UsageError
from mixjax.state import Geometry

FEW, SECONDS = 1000, 3.0  # files of a split that are looked at, unless told otherwise
NAMED = 3  # of those that cannot be read


class Opened(NamedTuple):
    """The splits of config.data; None for what is not there."""

    train: Source | None
    test: Source | None


def how_many(text: str) -> int | None:
    """--scan as a number of files; None for those that a few seconds allow."""
    if text in ("few", "all"):
        return {"few": None, "all": placeholder_data.SIZE**2}[text]
    if not text.isdigit():
        raise UsageError(f"--scan={text} is neither a number of files nor 'all'.")
    return int(text)


def open_splits(found: Findings, fields) -> Opened:
    """Opens both splits of config.data, and says what is in them."""
    for name in ("split", "eval_split"):
        found.attempt(splits.parse, fields[name], f"data.{name}")
    where = fields.source, fields.directory
    train = found.attempt(sources.open_source, where[0], fields.split, where[1])
    if train is None:
        found.fact("data", f"{fields.source} cannot be opened; blank pictures stand in")
        return Opened(None, None)
    found.fact("data", f"training: {describe(train)}")
    try:
        test = sources.open_source(
            where[0], fields.eval_split, where[1], "data.eval_split"
        )
    except MissingSplit:
        found.fact("data", f"held out: there is no split {fields.eval_split!r}")
        return Opened(train, None)
    except UsageError as error:
        found.problem(str(error))
        return Opened(train, None)
    found.fact("data", f"held out: {describe(test)}")
    return Opened(train, test)


def describe(source: Source) -> str:
    """A source in words."""
    labels = f"{source.classes} classes" if source.classes else "no labels"
    more = ", several to a picture" if source.several else ""
    return f"{source.name}, {source.size} examples, {labels}{more}"


def scan(found: Findings, source: Source, most: int | None, threads: int) -> None:
    """Decodes files that are spread evenly over `source`; names those that fail.

    most: how many; None for FEW, or what SECONDS allow.
    """
    if source.images is not None:
        found.fact("files", f"{source.name}: {source.size} pictures in one array")
        return
    broken, seen = look(source, min(most or FEW, source.size), most is None, threads)
    found.fact("files", f"{source.name}: {seen} of {source.size} decoded to look")
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        found.problem(
            f"data.source: {len(broken)} of {seen} files of {source.name} that were "
            f"looked at cannot be read: {'; '.join(broken[:NAMED])}{more}; mend or "
            f"remove them, since a run leaves them out."
        )


def look(
    source: Source, count: int, hurry: bool, threads: int
) -> tuple[list[str], int]:
    """(names of files that cannot be decoded, how many were tried)."""
    places = np.arange(count) * source.size // max(count, 1)
    if hurry:  # whenever time is up, what was seen is spread over the whole
        places = np.random.default_rng(0).permutation(places)

    def one(nth):
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
    told = grain.MapDataset.range(count).map(one).to_iter_dataset(options)
    told = list(itertools.takewhile(lambda _: time.monotonic() < end, told))
    return [text for text in told if text], len(told)


def fitting(fields, geometry: Geometry, source: Source) -> dict:
    """config.data with views that make of any picture what the network expects."""
    height, width = geometry.image_size
    if any(parse(view, "data.views").scene for view in fields.views):
        return dict(fields) | of_scenes(fields, max(height, width))
    view = f"resize(({height}, {width}))"
    if source.images is None or geometry.channels in (1, 3):
        channels = 1 if geometry.channels == 1 else 3
        side = max(height, width)
        view = f"decode_center(({height}, {width}), {side}, channels={channels})"
    views = dict(views=(view,) * len(fields.views), eval_view=view)
    return dict(fields) | views | dict(eval_split="test", on_device=False)


def of_scenes(fields, side: int) -> dict:
    """The fields of fitting() where views move boxes or maps along."""
    view = f"short_side(({side},), longest={side}, canvas={side})"
    if fields.views[0].startswith("segment"):
        view = f"segment_crop({side})"
    whole = f"fit({side}, longest={side}, canvas={side})"
    views = dict(views=(view,) * len(fields.views), eval_view=whole)
    return views | dict(eval_split="test", on_device=False)


def fit(found: Findings, config, source: Source, geometry: Geometry, mesh) -> bool:
    """Whether the fields of config.data and its views fit `source` and the network.

    Each view is tried among others that fit, so that all that do not are found.
    """
    fields, safe = config.data, fitting(config.data, geometry, source)
    how = dict(seed=config.seed, mesh=mesh, opened=(source, None))
    at_once = dict(batch=config.batch, **how)
    fits = [found.holds(data.make, one, **at_once) for one in (fields, safe)]
    tries = [safe | {"eval_view": fields.eval_view}]
    for i, view in enumerate(fields.views):
        others = safe["views"]
        tries.insert(i, safe | {"views": (*others[:i], view, *others[i + 1 :])})
    for one in tries:
        example = lambda one=one: data.make(one, batch=1, **how).example(geometry)
        fits.append(found.holds(example))
    return all(fits)


def check_texts(found: Findings, fields) -> None:
    """The views alone, where no network says what they should make."""
    for i, view in enumerate(fields.views):
        found.attempt(parse, view, f"data.views[{i}]")
    found.attempt(parse, fields.eval_view, "data.eval_view")
