"""The splits of one source as training and evaluation use them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.data import check_views, coco_objects, pipeline, sources, splits
from mixjax.data.pipeline import Data
from mixjax.data.reader import Reader
from mixjax.data.source import MissingSplit, Source, subset
from mixjax.data.views import View, parse
from mixjax.state import Geometry

Splits = tuple[Source, Source | None]  # the training and the held-out split


class Settings(NamedTuple):
    """The fields of config.data, and what the run adds to them."""

    source: str
    directory: str
    split: str
    eval_split: str
    views: tuple[str, ...]
    eval_view: str
    eval_batch: int
    on_device: bool
    threads: int
    prefetch: int
    batch: int
    seed: int
    mesh: jax.sharding.Mesh | None
    opened: Splits | None  # used in place of `source`, `split` and `eval_split`


class Datasets:
    """The training split and the held-out split, with their views.

    Construction parses the views and opens the training split; examples are read and
    decoded only when `train`, `bank` or `test` is first asked for.

    train: batches of augmented views. bank, test: the training and the held-out
    examples through `eval_view`.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._views = [
            parse(view, f"data.views[{i}]") for i, view in enumerate(settings.views)
        ]
        self.eval_view = parse(settings.eval_view, "data.eval_view")
        self._source = self._open_train()
        # The held-out split is opened later; a mistake in its text is reported now.
        splits.parse(settings.eval_split, "data.eval_split")
        self.scenes = any(view.scene for view in self._views)
        kind = settings.source.partition(":")[0]
        self._plain = kind in sources.ANNOTATED and not self.scenes
        if self._plain:
            self._source = without_annotations(self._source)
        elif has_objects(self._source):
            self._source = coco_objects.for_training(self._source)
        self.size, self.classes = self._source.size, self._source.classes
        self.several = self._source.several  # classes per picture
        check_views.check_batch(self._source, settings.batch)
        if settings.on_device:
            check_views.check_resident((*self._views, self.eval_view))

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self._settings.batch

    def describe(self) -> str:
        """The training split in words, for the log."""
        labels = f"{self.classes} classes" if self.classes else "no labels"
        labels += ", several per picture" if self.several else ""
        on_device, threads = self._settings.on_device, self._settings.threads
        place = "kept on the devices" if on_device else f"{threads} threads"
        return f"{self._source.name}, {self.size} examples, {labels}, {place}"

    def category_ids(self) -> tuple[int, ...]:
        """The number that result files use for each class."""
        kind, _, path = self._settings.source.partition(":")
        if kind == "coco":
            return coco_objects.category_ids(path, self._settings.eval_split)
        return tuple(range(1, self.classes + 1))

    def example(self, geometry: Geometry) -> dict:
        """Shapes and dtypes of a batch of one example, as a method receives it.

        Reads one picture. UsageError unless the views make the images that the
        network expects.
        """
        views = [*self._views, self.eval_view]
        fields = [f"data.views[{i}]" for i in range(len(self._views))]
        fields.append("data.eval_view")
        host = Reader(self._source, views, self._settings.seed).training(0, 0)
        shapes = []
        for field, view, image in zip(fields, views, host["images"], strict=True):
            shape = check_views.view_shape(field, view, image, self._source)
            # The first view always has the network's size, and so has the evaluated
            # one unless it keeps whole scenes; further crops may be smaller.
            exact = ("data.views[0]",)
            if not view.scene:
                exact += ("data.eval_view",)
            crop = (geometry.any_size or bool(view.scene)) and field not in exact
            check_views.check_shape(field, shape, self._source, geometry, crop)
            shapes.append(jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        # [B] class numbers, or [B, classes] if pictures may show several classes.
        label_shape = (1, self.classes) if self.several else (1,)
        batch = {
            "views": tuple(shapes[:-1]),  # training never sees the evaluated view
            "index": jax.ShapeDtypeStruct((1,), jnp.int32),
            "label": jax.ShapeDtypeStruct(label_shape, jnp.int32),
        }
        targets = {
            name: jax.ShapeDtypeStruct((1, *target.shape), target.dtype)
            for name, target in host.get("targets", {}).items()
        }
        return batch | ({"targets": targets} if targets else {})

    @functools.cached_property
    def train(self) -> Data:
        """The training split in batches of the training run."""
        return self.training(self._settings.batch)

    def training(self, batch: int) -> Data:
        """The training split through its views, `batch` examples at a time."""
        check_views.check_batch(self._train_source, batch)
        return self._data(self._train_source, self._views, batch)

    def bank(self, examples: int) -> Data:
        """`examples` of the training split, evenly spaced; 0 means all of it."""
        return self._evaluated(self._train_source, examples)

    def test(self, examples: int) -> Data | None:
        """`examples` of the held-out split, 0 for all; None if it does not exist."""
        return self._test_source and self._evaluated(self._test_source, examples)

    def other(
        self, source: str, split: str, view: str, field: str, geometry: Geometry
    ) -> Data:
        """All examples of another source through `view`, in evaluation batches.

        field: the config section to name in error messages. Raises UsageError unless
        the view makes images of the shape in `geometry`.
        """
        directory, seed = self._settings.directory, self._settings.seed
        opened = sources.open_source(source, split, directory, f"{field}.split")
        parsed = parse(view, f"{field}.view")
        (image,) = Reader(opened, [parsed], seed).training(0, 0)["images"]
        shape = check_views.view_shape(f"{field}.view", parsed, image, opened)
        check_views.check_shape(f"{field}.view", shape, opened, geometry, crop=False)
        return self._data(opened, [parsed], self._settings.eval_batch)

    def _open_train(self) -> Source:
        settings = self._settings
        if settings.opened:
            return settings.opened[0]
        return sources.open_source(settings.source, settings.split, settings.directory)

    def _open_test(self) -> Source | None:
        settings = self._settings
        if settings.opened:
            return settings.opened[1]
        return sources.open_source(
            settings.source, settings.eval_split, settings.directory, "data.eval_split"
        )

    @functools.cached_property
    def _train_source(self) -> Source:
        source = self._settled(self._source)
        # Again: settling may have left out unreadable files.
        check_views.check_batch(source, self._settings.batch)
        return source

    @functools.cached_property
    def _test_source(self) -> Source | None:
        try:
            source = self._open_test()
        except MissingSplit:  # without a held-out split, there is nothing to evaluate
            return None
        if source is None:
            return None
        if self._plain:
            source = without_annotations(source)
        check_views.check_same_classes(self._source, source)
        return self._settled(source)

    def _settled(self, source: Source) -> Source:
        settings = self._settings
        if not settings.on_device:
            return source
        return pipeline.load_on_devices(
            source, self.eval_view, settings.mesh, settings.threads
        )

    def _evaluated(self, source: Source, examples: int) -> Data:
        if examples and examples < source.size:
            # Evenly spaced, since class folders list their classes one after another.
            places = np.arange(examples) * source.size // examples
            source = subset(source, places)
        return self._data(source, [self.eval_view], self._settings.eval_batch)

    def _data(self, source: Source, views: list[View], batch: int) -> Data:
        settings = self._settings
        return pipeline.make(
            source,
            views=views,
            batch=batch,
            seed=settings.seed,
            mesh=settings.mesh,
            threads=settings.threads,
            prefetch=settings.prefetch,
        )


def has_objects(source: Source) -> bool:
    """Whether the labels of a source are objects rather than classes."""
    return source.labels is not None and source.labels.dtype == object


def without_annotations(source: Source) -> Source:
    """The pictures alone, for views that ignore boxes and label maps."""
    return source._replace(classes=0, several=False, names=(), labels=None)
