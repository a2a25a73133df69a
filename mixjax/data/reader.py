"""Reads and decodes one example at a time and replaces unreadable files."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from mixjax.data.decode import Unreadable
from mixjax.data.source import Source
from mixjax.data.views import View
from mixjax.errors import UsageError

log = logging.getLogger("mixjax")
# Unreadable files in a row after which a source is rejected: more than a damaged copy
# has, and few enough to try in a moment.
TRIES = 1000


def host_rng(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The generator of one view of one example in one epoch."""
    # The last word of the counter keeps these draws apart from those of the epoch's
    # permutation, which has the same key.
    bits = np.random.Philox(key=[seed, epoch], counter=[0, index, view, 1])
    return np.random.Generator(bits)


class Reader:
    """Runs the host half of the views and remembers which files are unreadable.

    An unreadable file is logged once and counted. In training, the next readable
    example takes its place; in a sweep, its place is filled but marked as not valid.
    """

    def __init__(self, source: Source, views: Sequence[View], seed: int):
        self.source, self.views, self.seed = source, views, seed
        self.unreadable: set[str] = set()
        self._lock = threading.Lock()

    def training(self, index: int, epoch: int) -> dict:
        """Example `index`, or the next readable one."""
        return self._first_readable(index, epoch)[0]

    def sweeping(self, index: int, inside: bool) -> dict:
        """Example `index` with "valid", false if it is padding or unreadable."""
        example, at = self._first_readable(index, 0)
        return {**example, "valid": np.bool_(inside and at == index)}

    def _first_readable(self, index: int, epoch: int) -> tuple[dict, int]:
        for at in range(index, index + min(self.source.size, TRIES)):
            at %= self.source.size
            try:
                return self._read(at, epoch), at
            except (Unreadable, OSError) as error:
                self._warn(at, error)
        raise UsageError(f"data: {self.source.name} holds no picture that can be read.")

    def _read(self, index: int, epoch: int) -> dict:
        picture, label = self.source.read(index)
        annotation = label if isinstance(label, tuple) else None
        images, targets = [], {}
        for number, view in enumerate(self.views):
            # Keyed by `index`, the example actually read, not the one asked for.
            rng = host_rng(self.seed, epoch, index, number)
            if view.scene is not None:
                self._check_annotated(annotation)
                image, view_targets = view.scene(picture, annotation, rng)
                images.append(image)
                targets = targets or view_targets  # those of the first view
            else:
                images.append(picture if view.host is None else view.host(picture, rng))
        # Annotations reach the batch as targets; a label must have a fixed shape.
        label = -1 if annotation is not None else label
        example = {
            "images": tuple(images),
            "index": np.int32(index),
            "label": np.asarray(label, np.int32),  # [] or [classes]
        }
        return example | ({"targets": targets} if targets else {})

    def _check_annotated(self, annotation) -> None:
        if annotation is None:
            raise UsageError(
                f"data: {self.source.name} has neither boxes nor segmentation maps, "
                f"which the view's first operation transforms with the picture; use a "
                f"source such as coco:PATH, voc_objects:PATH or ade20k:PATH."
            )

    def _warn(self, index: int, error: Exception) -> None:
        title = self.source.title(index)
        # Several threads read at once, and each file should be logged once.
        with self._lock:
            known = title in self.unreadable
            self.unreadable.add(title)
        if not known:
            log.warning("cannot read %s (%s); left out", title, error)
