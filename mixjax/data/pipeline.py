"""From a source to batches on the devices.

What a batch holds is a function of (seed, step) alone: the order of an epoch is a
permutation keyed by (seed, epoch), host randomness is keyed by (seed, epoch, index,
view), device randomness by (seed, step, index). So a run continues exactly from a
step number, with any number of threads, processes or devices. grain reads, decodes
and batches in threads. An epoch is whole batches; its last odd examples are left out.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from mixjax.data.reader import Reader
from mixjax.data.source import Source, from_arrays
from mixjax.data.views import View
from mixjax.errors import UsageError
from mixjax.sharding import meshes
from mixjax.state import example_keys

Array = jax.Array
PART = 8  # examples that a thread reads at once; grain's own work is per part


class Data(NamedTuple):
    """A source with its views, ready to be batched."""

    source: Source
    batch: int
    steps_per_epoch: int
    resident: dict  # {} or {"images": [N, H, W, C] uint8 on every device}
    batches: Callable  # (first step, end) -> iterator of batches on the devices
    sweep: Callable  # () -> the same over all examples once, padded, with "valid" [B]
    augment: Callable  # (batch, resident, rng) -> batch with "views"
    unreadable: set[str]  # titles of the pictures that could not be read so far


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of `size` examples in `epoch`, a function of (seed, epoch)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def settle(source: Source, view: View, mesh, threads: int) -> Source:
    """Decodes all of `source` and keeps it on every device, as uint8 [N, H, W, C].

    view: its host half, if any, is done now, once, so it may not be random. Broken
    files are left out. UsageError if the pictures differ in size.
    """
    if source.images is not None and view.host is None:
        images, labels = source.images, source.labels
    else:
        reader = Reader(source, [view], seed=0)
        examples = grain.MapDataset.range(source.size)
        examples = examples.map(lambda i: reader.sweeping(int(i), True))
        examples = [
            e for e in examples.to_iter_dataset(_options(threads)) if e["valid"]
        ]
        shapes = {e["images"][0].shape for e in examples}
        if len(shapes) > 1:
            raise UsageError(
                f"data.on_device=True: the pictures of {source.name} differ in size, "
                f"such as {sorted(shapes)[0]} and {sorted(shapes)[-1]}; begin the "
                f"views with decode_center(...) or set data.on_device=False."
            )
        images = np.stack([e["images"][0] for e in examples])
        labels = np.stack([e["label"] for e in examples]) if source.classes else None
    images = meshes.put(images, meshes.replicated(mesh))
    resident = from_arrays(source.name, images, labels)
    return resident._replace(classes=source.classes, names=source.names)


def make(
    source: Source,
    *,
    views: Sequence[View],
    batch: int,
    seed: int,
    mesh,
    threads: int,
    prefetch: int,
) -> Data:
    """Readies `source` for batches of `batch` examples, each seen through `views`.

    prefetch: batches that wait on the devices, read ahead of their use.
    """
    rows = meshes.rows_here(mesh, batch)
    per_epoch = source.size // batch
    reader = Reader(source, views, seed)
    on_device = isinstance(source.images, jax.Array)

    def train_rows(step: int) -> tuple[np.ndarray, int]:
        epoch, nth = divmod(step, per_epoch)
        whole = order(seed, epoch, source.size)[nth * batch : (nth + 1) * batch]
        return whole[rows], epoch

    def sweep_rows(step: int) -> np.ndarray:
        return (step * batch + np.arange(batch))[rows]

    if on_device or (
        source.images is not None
        and all(v.host is None and v.scene is None for v in views)
    ):
        feed = feed_arrays(source, len(views), on_device, prefetch)
    else:
        feed = feed_files(reader, len(rows), threads)

    def ahead(dataset: grain.IterDataset) -> Iterator[dict]:
        dataset = dataset.map(functools.partial(meshes.to_devices, mesh, batch))
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(
                dataset, prefetch_buffer_size=prefetch
            )
        )

    return Data(
        source=source,
        batch=batch,
        steps_per_epoch=per_epoch,
        resident={"images": source.images} if on_device else {},
        batches=lambda first, end: ahead(feed.train(train_rows, first, end)),
        sweep=lambda: ahead(feed.sweep(sweep_rows, -(-source.size // batch))),
        augment=functools.partial(augment, views),
        unreadable=reader.unreadable,
    )


class Feed(NamedTuple):
    """Host batches in order, as grain datasets."""

    train: Callable  # (rows of a step, first step, end) -> batches
    sweep: Callable  # (rows of a step, end) -> batches with "valid"


def feed_arrays(source: Source, views: int, on_device: bool, prefetch: int) -> Feed:
    """Whole batches at once, by indexing; numbers only if the images are on_device."""

    def gather(index: np.ndarray) -> dict:
        labels = source.labels
        labels = np.full(len(index), -1) if labels is None else labels[index]
        batch = {"index": index.astype(np.int32), "label": labels.astype(np.int32)}
        if not on_device:
            batch["images"] = (source.images[index],) * views
        return batch

    def train(rows, first, end):
        steps = grain.MapDataset.range(first, end)
        steps = steps.map(lambda step: gather(rows(int(step))[0]))
        return steps.to_iter_dataset(_options(1, prefetch))

    def sweep(rows, end):
        def one(step):
            index = rows(int(step))
            arrays = gather(np.minimum(index, source.size - 1))
            return {**arrays, "valid": index < source.size}

        return grain.MapDataset.range(end).map(one).to_iter_dataset(_options(1))

    return Feed(train, sweep)


def feed_files(reader: Reader, count: int, threads: int) -> Feed:
    """Examples read and decoded in threads, PART at a time, `count` to a batch."""
    size = reader.source.size
    parts = -(-count // PART)

    def rows_of_part(rows: Sequence, part: int) -> list[int]:
        return rows[part * PART : (part + 1) * PART].tolist()

    def train(rows, first, end):
        def some(position):
            step, part = divmod(int(position), parts)
            index, epoch = rows(step)
            return [reader.training(i, epoch) for i in rows_of_part(index, part)]

        return batched(grain.MapDataset.range(first * parts, end * parts).map(some))

    def sweep(rows, end):
        def some(position):
            step, part = divmod(int(position), parts)
            return [
                reader.sweeping(min(i, size - 1), inside=i < size)
                for i in rows_of_part(rows(step), part)
            ]

        return batched(grain.MapDataset.range(end * parts).map(some))

    def batched(dataset):
        dataset = dataset.to_iter_dataset(_options(threads, 2 * parts))
        return dataset.batch(parts, drop_remainder=True, batch_fn=stack)

    return Feed(train, sweep)


def stack(parts: Sequence[list[dict]]) -> dict:
    """Lists of examples -> one batch, in their order."""
    examples = [example for part in parts for example in part]
    for view in zip(*(e["images"] for e in examples), strict=True):
        shapes = sorted({image.shape for image in view})
        if len(shapes) > 1:
            raise UsageError(
                f"data: the pictures of a batch differ in size, such as {shapes[0]} "
                f"and {shapes[-1]}; begin the views with decode_crop or decode_center."
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _options(threads: int, ahead: int = 0) -> grain.ReadOptions:
    return grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(ahead, 2 * threads)
    )


def inside(hw: Array, height: int, width: int) -> Array:
    """[B, 2] heights and widths -> bool [B, height, width, 1], the pixels within."""
    rows = jnp.arange(height)[None, :, None, None] < hw[:, 0, None, None, None]
    return rows & (jnp.arange(width)[None, None, :, None] < hw[:, 1, None, None, None])


def augment(views: Sequence[View], batch: dict, resident: dict, rng: Array) -> dict:
    """Runs the device half of the views: adds "views", a tuple of [B, h, w, C] float32.

    batch: "index" [B] and, unless the set is resident, "images", a tuple of uint8
    arrays, one per view. What lies beyond "hw" [B, 2] of "targets", the size of a
    picture on its canvas, is zero in the end. Pure; it is jitted as a part of the step.
    """
    if resident:
        same = jnp.take(resident["images"], batch["index"], axis=0)  # [B, H, W, C]
        images = (same,) * len(views)
    else:
        images = batch["images"]
    readable = []
    for number, (view, image) in enumerate(zip(views, images, strict=True)):
        keys = example_keys(jax.random.fold_in(rng, number), batch["index"])
        image = jax.vmap(view.device)(keys, image)
        if view.scene is not None and "hw" in batch["targets"]:
            image = jnp.where(
                inside(batch["targets"]["hw"], *image.shape[1:3]), image, 0
            )
        readable.append(image)
    rest = {k: v for k, v in batch.items() if k != "images"}
    return {**rest, "views": tuple(readable)}
