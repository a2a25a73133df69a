"""The Source type: pictures by number, with subsets and concatenations of sources."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError

log = logging.getLogger("mixjax")


class Source(NamedTuple):
    """Pictures by number, read only when asked for.

    A label is an integer, -1 if there is none. Where a picture may show several
    classes, it is an int8 vector over all classes instead: 1 present, 0 absent, -1
    ignored by scores.
    """

    name: str
    size: int
    classes: int  # 0 if there are no labels
    several: bool  # labels are vectors [classes]
    names: tuple[str, ...]  # of the classes, in label order; () if unknown
    read: Callable  # i -> (encoded bytes or uint8 [H, W, C], label)
    title: Callable  # i -> the name of example i in messages
    file: Callable | None  # i -> its file's name, with or without folders
    images: np.ndarray | None  # uint8 [N, H, W, C] if they are in memory
    labels: np.ndarray | None  # [N] or [N, classes] if known without reading


class MissingSplit(UsageError):
    """The source exists but does not have this split."""


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray | None) -> Source:
    """A source over uint8 images [N, H, W, C] in memory and their labels, if any.

    labels: [N], where the largest one sets the number of classes, or [N, classes] as
    in Source.
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
    """Label i in the form that Source.read returns; -1 without labels."""
    if labels is None:
        return -1
    return labels[i] if labels.ndim == 2 else int(labels[i])


def all_labels(source: Source) -> np.ndarray:
    """Labels [N] or [N, classes]; reads every example if they are not known yet."""
    if source.labels is not None:
        return source.labels
    # Slow for files, so the log says why nothing else happens.
    log.info("reading all %d examples of %s for labels", source.size, source.name)
    return np.array([source.read(i)[1] for i in range(source.size)])


def subset(source: Source, places: np.ndarray) -> Source:
    """The examples of `source` at `places`, in that order; classes stay the same."""
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
    """Concatenates sources, in order.

    Raises UsageError if their classes or the shapes of their arrays differ.
    """
    first, *others = sources
    for other in others:
        _check_same_classes(first, other)
    starts = np.cumsum([0, *(s.size for s in sources)])

    def call(field, i):
        # side="right": the first example of a source belongs to it, not to the one
        # before.
        number = int(np.searchsorted(starts, i, side="right")) - 1
        return getattr(sources[number], field)(int(i - starts[number]))

    has_files = all(s.file is not None for s in sources)

    return first._replace(
        name=" + ".join(s.name for s in sources),
        size=int(starts[-1]),
        read=functools.partial(call, "read"),
        title=functools.partial(call, "title"),
        file=functools.partial(call, "file") if has_files else None,
        images=_concatenate(sources, "images"),
        labels=_concatenate(sources, "labels"),
    )


def _check_same_classes(first: Source, second: Source) -> None:
    if first.several != second.several:
        several, single = (first, second) if first.several else (second, first)
        raise UsageError(
            f"data: {several.name} has several labels per picture but {single.name} "
            f"does not; only splits with the same kind of labels can be joined."
        )
    if first.classes != second.classes:
        raise UsageError(
            f"data: {first.name} has {first.classes} classes but {second.name} has "
            f"{second.classes}; only splits with the same classes can be joined."
        )
    # Names may be unknown, (), on one side.
    for a, b in zip(first.names, second.names, strict=False):
        if a != b:
            raise UsageError(
                f"data: {first.name} has a class {a!r} where {second.name} has {b!r}; "
                f"only splits with the same classes can be joined."
            )


def _concatenate(sources: Sequence[Source], field: str) -> np.ndarray | None:
    arrays = [getattr(s, field) for s in sources]
    if any(a is None for a in arrays):
        return None
    shapes = sorted({a.shape[1:] for a in arrays})
    if len(shapes) > 1:
        raise UsageError(
            f"data: the {field} of {' + '.join(s.name for s in sources)} have shapes "
            f"{shapes[0]} and {shapes[-1]}; only arrays of one shape can be joined."
        )
    return np.concatenate(arrays)
