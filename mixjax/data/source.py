"""What every kind of source becomes: pictures by number, their parts and their sums."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError

log = logging.getLogger("mixjax")


class Source(NamedTuple):
    """Pictures by number.

    A label is a whole number, -1 if there is none; or, where a picture may show several
    classes, a vector int8 of them all: 1 present, 0 absent, -1 not to be counted.
    """

    name: str
    size: int
    classes: int  # 0: no labels
    several: bool  # labels are vectors [classes]
    names: tuple[str, ...]  # of the classes, in their order; () if not known
    read: Callable  # i -> (bytes of a file or array uint8, label)
    title: Callable  # i -> what to call example i in a message
    file: Callable | None  # i -> the name of its file, with or without folders
    images: np.ndarray | None  # all of them, where they are in memory already
    labels: np.ndarray | None  # [N] or [N, classes], where they are known already


class MissingSplit(UsageError):
    """The source is there, this split of it is not."""


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray | None) -> Source:
    """A source over arrays in memory: uint8 [N, H, W, C] and labels or None.

    labels: [N], classes 0 .. the largest; or [N, classes], see Source.
    """
    several = labels is not None and labels.ndim == 2
    if several:
        classes = labels.shape[1]
    else:
        classes = 0 if labels is None or not len(labels) else int(labels.max()) + 1
    return Source(
        name=name,
        size=len(images),
        classes=classes,
        several=several,
        names=(),
        read=lambda i: (images[i], label_of(labels, i)),
        title=lambda i: f"{name}, example {i}",
        file=None,
        images=images,
        labels=labels,
    )


def label_of(labels: np.ndarray | None, i: int):
    """Label i as a Source reads it; -1 where there are none."""
    if labels is None:
        return -1
    return labels[i] if labels.ndim == 2 else int(labels[i])


def all_labels(source: Source) -> np.ndarray:
    """Labels [N] or [N, classes]; reads every example where that is the only way."""
    if source.labels is not None:
        return source.labels
    log.info("reading all %d examples of %s for labels", source.size, source.name)
    return np.array([source.read(i)[1] for i in range(source.size)])


def subset(source: Source, places: np.ndarray) -> Source:
    """The examples of `source` at `places`, in that order; classes are as before."""
    images, labels, file = source.images, source.labels, source.file
    return source._replace(
        name=f"{source.name}[{len(places)}]",
        size=len(places),
        read=lambda i: source.read(int(places[i])),
        title=lambda i: source.title(int(places[i])),
        file=None if file is None else lambda i: file(int(places[i])),
        images=None if images is None else images[places],
        labels=None if labels is None else labels[places],
    )


def join(sources: Sequence[Source]) -> Source:
    """One source after the other.

    UsageError unless they have the same classes, or if their arrays differ in shape.
    """
    first, *others = sources
    for other in others:
        _check_same_classes(first, other)
    starts = np.cumsum([0, *(s.size for s in sources)])

    def at(i):
        nth = int(np.searchsorted(starts, i, side="right")) - 1
        return sources[nth], int(i - starts[nth])

    def of(field):
        def get(i):
            source, place = at(i)
            return getattr(source, field)(place)

        return get

    return first._replace(
        name=" + ".join(s.name for s in sources),
        size=int(starts[-1]),
        read=of("read"),
        title=of("title"),
        file=None if any(s.file is None for s in sources) else of("file"),
        images=_joined(sources, "images"),
        labels=_joined(sources, "labels"),
    )


def _check_same_classes(one: Source, other: Source) -> None:
    if (one.several, one.classes) != (other.several, other.classes):
        raise UsageError(
            f"data: {one.name} has {one.classes} classes and {other.name} "
            f"{other.classes}; only what has the same classes can be joined."
        )
    for a, b in zip(one.names, other.names, strict=False):
        if a != b:
            raise UsageError(
                f"data: {one.name} has a class {a!r} where {other.name} has {b!r}; "
                f"only what has the same classes can be joined."
            )


def _joined(sources: Sequence[Source], field: str) -> np.ndarray | None:
    arrays = [getattr(s, field) for s in sources]
    if any(a is None for a in arrays):
        return None
    shapes = sorted({a.shape[1:] for a in arrays})
    if len(shapes) > 1:
        raise UsageError(
            f"data: the {field} of {sources[0].name} are {shapes[0]} or {shapes[-1]}; "
            f"only those of one size can be joined."
        )
    return np.concatenate(arrays)
