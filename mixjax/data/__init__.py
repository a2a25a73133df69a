"""Pictures from configuration: config.data opened, checked, and batched.

Opening is quick and finds what is wrong; `Datasets` reads and decodes only when its
parts are first asked for.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.config.registry import call
from mixjax.data import coco_objects, pipeline, sources, splits
from mixjax.data.pipeline import Data
from mixjax.data.reader import Reader
from mixjax.data.source import MissingSplit, Source, subset
from mixjax.data.views import View, parse
from mixjax.errors import UsageError
from mixjax.state import Geometry

Splits = tuple[Source, Source | None]


def make(config: Mapping, *, opened: Splits | None = None, **extra) -> "Datasets":
    """The data sets of config.data; UsageError says what is missing or wrong.

    opened: the training and the held-out split, to take instead of data.source's.
    """
    return call("data", Datasets, config, opened=opened, **extra)


class Datasets:
    """The splits of one source as training and evaluation see them.

    train: batches of augmented views. bank, test: the training and the held-out
    examples through `eval_view`.
    """

    def __init__(
        self,
        *,
        source: str,
        directory: str,
        split: str,
        eval_split: str,
        views: tuple[str, ...],
        eval_view: str,
        eval_batch: int,
        on_device: bool,
        threads: int,
        prefetch: int,
        batch: int,
        seed: int,
        mesh,
        opened: Splits | None,
    ):
        self._views = [parse(v, f"data.views[{i}]") for i, v in enumerate(views)]
        self.eval_view = parse(eval_view, "data.eval_view")
        if opened:
            self._source, test = opened
            self._open_test = lambda: test
        else:
            self._source = sources.open_source(source, split, directory)
            self._open_test = functools.partial(
                sources.open_source, source, eval_split, directory, "data.eval_split"
            )
        splits.parse(eval_split, "data.eval_split")  # it is opened later
        self.scenes = any(v.scene for v in self._views)
        self._plain = source.partition(":")[0] in sources.ANNOTATED and not self.scenes
        if self._plain:
            self._source = without_annotations(self._source)
        elif has_objects(self._source):
            self._source = coco_objects.for_training(self._source)
        self._directory, self._where = directory, (source, eval_split)
        self._batch, self._eval_batch, self._seed = batch, eval_batch, seed
        self._mesh, self._on_device = mesh, on_device
        self._threads, self._prefetch = threads, prefetch
        self.size, self.classes = self._source.size, self._source.classes
        self.several = self._source.several  # classes per picture
        self._check_size(self._source, self._batch)
        if on_device:
            self._check_same_start()

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self._batch

    def describe(self) -> str:
        """The training set in words."""
        labels = f"{self.classes} classes" if self.classes else "no labels"
        labels += ", several per picture" if self.several else ""
        where = "kept on the devices" if self._on_device else f"{self._threads} threads"
        return f"{self._source.name}, {self.size} examples, {labels}, {where}"

    def category_ids(self) -> tuple[int, ...]:
        """The number that files of results have for each class."""
        source, split = self._where
        kind, _, rest = source.partition(":")
        if kind == "coco":
            return coco_objects.category_ids(rest, split)
        return tuple(range(1, self.classes + 1))

    def _check_size(self, source: Source, batch: int) -> None:
        if source.size < batch:
            raise UsageError(
                f"batch={batch} is more than the {source.size} examples of "
                f"{source.name}; take at most {source.size}."
            )

    def _check_same_start(self) -> None:
        if any(v.scene for v in (*self._views, self.eval_view)):
            raise UsageError(
                "data.on_device=True keeps pictures alone; set data.on_device=False "
                "for views that move boxes or maps of classes along."
            )
        starts = {v.start for v in (*self._views, self.eval_view)}
        if len(starts) > 1 or any("decode_crop" in s for s in starts):
            raise UsageError(
                f"data.on_device=True decodes every picture once, so all views must "
                f"begin alike and without chance, not with {sorted(starts)}; "
                f"use crop(...) for random crops."
            )

    def example(self, geometry: Geometry) -> dict:
        """Shapes of a batch of one, as a method gets it.

        UsageError unless the views make the images that the network expects. Reads
        one picture.
        """
        wanted = (*geometry.image_size, geometry.channels)
        fields = [f"data.views[{i}]" for i in range(len(self._views))]
        views = [*self._views, self.eval_view]
        read = Reader(self._source, views, self._seed).training(0, 0)
        shapes = []
        for field, view, image in zip(
            [*fields, "data.eval_view"], views, read["images"], strict=True
        ):
            shape = self._shape(field, view, image)
            free = (
                ("data.views[0]",)
                if view.scene
                else ("data.views[0]", "data.eval_view")
            )
            crop = (geometry.any_size or view.scene) and field not in free
            if shape != wanted and not (crop and shape[2:] == wanted[2:]):
                raise UsageError(
                    f"{field} makes images of {_size(shape)} from {self._source.name}, "
                    f"but model.encoder expects {_size(wanted)}."
                )
            shapes.append(jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        number = jax.ShapeDtypeStruct((1,), jnp.int32)
        label = (1, self.classes) if self.several else (1,)
        label = jax.ShapeDtypeStruct(label, jnp.int32)
        example = {"views": tuple(shapes[:-1]), "index": number, "label": label}
        targets = {
            k: jax.ShapeDtypeStruct((1, *v.shape), v.dtype)
            for k, v in read.get("targets", {}).items()
        }
        return example | ({"targets": targets} if targets else {})

    def _shape(self, field: str, view: View, image) -> tuple[int, ...]:
        if isinstance(image, bytes):
            raise UsageError(
                f"{field}={view.text!r} must begin with decode, decode_crop or "
                f"decode_center, since {self._source.name} holds picture files."
            )
        image = jax.ShapeDtypeStruct(image.shape, image.dtype)
        try:
            return jax.eval_shape(view.device, jax.random.key(0), image).shape
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{field}={view.text!r}: {reason}") from error

    @functools.cached_property
    def _train_source(self) -> Source:
        source = self._settled(self._source)
        self._check_size(source, self._batch)  # again, without the broken files
        return source

    def _settled(self, source: Source) -> Source:
        if not self._on_device:
            return source
        return pipeline.settle(source, self.eval_view, self._mesh, self._threads)

    def _data(self, source: Source, views: list[View], batch: int) -> Data:
        return pipeline.make(
            source,
            views=views,
            batch=batch,
            seed=self._seed,
            mesh=self._mesh,
            threads=self._threads,
            prefetch=self._prefetch,
        )

    @functools.cached_property
    def train(self) -> Data:
        return self.training(self._batch)

    def training(self, batch: int) -> Data:
        """The training split through its views, `batch` examples at a time."""
        self._check_size(self._train_source, batch)
        return self._data(self._train_source, self._views, batch)

    def bank(self, examples: int) -> Data:
        """`examples` of the training split, spread evenly, or 0 for all of it."""
        return self._seen(self._train_source, examples)

    def test(self, examples: int) -> Data | None:
        """`examples` of the held-out split, or 0 for all; None if there is none."""
        return self._test_source and self._seen(self._test_source, examples)

    def other(
        self, source: str, split: str, view: str, field: str, geometry: Geometry
    ) -> Data:
        """All of another source through `view`, in batches as for evaluation.

        field: what to call it in messages. UsageError unless the view makes the images
        of `geometry`.
        """
        opened = sources.open_source(source, split, self._directory, f"{field}.split")
        parsed = parse(view, f"{field}.view")
        (image,) = Reader(opened, [parsed], self._seed).training(0, 0)["images"]
        shape = self._shape(f"{field}.view", parsed, image)
        wanted = (*geometry.image_size, geometry.channels)
        if shape != wanted:
            raise UsageError(
                f"{field}.view makes images of {_size(shape)} from {opened.name}, but "
                f"model.encoder expects {_size(wanted)}."
            )
        return self._data(opened, [parsed], self._eval_batch)

    @functools.cached_property
    def _test_source(self) -> Source | None:
        try:
            source = self._open_test()
        except MissingSplit:
            return None
        if source is None:
            return None
        if self._plain:
            source = without_annotations(source)
        self._check_same_classes(source)
        return self._settled(source)

    def _check_same_classes(self, test: Source) -> None:
        """UsageError if labels of the two splits would mean other classes.

        Class folders are numbered in each split by itself.
        """
        known, names = self._source.names, test.names
        if known and names and known != names:
            odd = sorted(set(known) ^ set(names))[:3]
            raise UsageError(
                f"data.eval_split: {test.name} has other classes than "
                f"{self._source.name}, such as {odd}; both must have the same."
            )

    def _seen(self, source: Source, examples: int) -> Data:
        if examples and examples < source.size:
            places = np.arange(examples) * source.size // examples
            source = subset(source, places)
        return self._data(source, [self.eval_view], self._eval_batch)


def has_objects(source: Source) -> bool:
    """Whether the labels of a source are objects, not classes."""
    return source.labels is not None and source.labels.dtype == object


def without_annotations(source: Source) -> Source:
    """Pictures alone, for views that move nothing along with them."""
    return source._replace(classes=0, several=False, names=(), labels=None)


def _size(shape) -> str:
    return " x ".join(map(str, shape))
