"""Turns a source into batches on the devices.

A batch is a function of (seed, step) alone: the order of an epoch is a permutation
keyed by (seed, epoch), host randomness is keyed by (seed, epoch, index, view), and
device randomness by (seed, step, index). A run therefore resumes exactly at any step,
with any number of threads, processes or devices. grain reads, decodes and batches in
threads. An epoch consists of whole batches; the examples left over at its end are
dropped.
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
# Examples per grain element: large enough to hide grain's overhead per element, small
# enough to spread one batch over all threads.
CHUNK = 8


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


class Loader(NamedTuple):
    """What the host batches of a source depend on."""

    source: Source
    reader: Reader
    views: int  # per example
    on_device: bool  # batches hold indices alone; the images are on the devices
    batch: int  # over all processes
    rows: np.ndarray  # of a batch, those that this process feeds
    seed: int
    threads: int
    prefetch: int


@functools.lru_cache(maxsize=4)
def permute_epoch(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of `size` examples in `epoch`, a function of (seed, epoch)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def load_on_devices(source: Source, view: View, mesh, threads: int) -> Source:
    """Decodes all of `source` and keeps it on every device, as uint8 [N, H, W, C].

    The host half of `view`, if any, runs only once here, so it must not be random.
    Unreadable files are dropped. Raises UsageError if the pictures differ in size.
    """
    if source.images is not None and view.host is None:
        images, labels = source.images, source.labels
    else:
        reader = Reader(source, [view], seed=0)
        examples = grain.MapDataset.range(source.size)
        examples = examples.map(lambda i: reader.sweeping(int(i), True))
        examples = [
            e for e in examples.to_iter_dataset(_read_options(threads)) if e["valid"]
        ]
        shapes = sorted({e["images"][0].shape for e in examples})
        if len(shapes) > 1:
            raise UsageError(
                f"data.on_device=True: the pictures of {source.name} differ in size, "
                f"such as {shapes[0]} and {shapes[-1]}; begin the views with "
                f"decode_center(...) or set data.on_device=False."
            )
        images = np.stack([e["images"][0] for e in examples])  # [N, H, W, C]
        labels = np.stack([e["label"] for e in examples]) if source.classes else None
    images = meshes.put(images, meshes.replicated(mesh))
    resident = from_arrays(source.name, images, labels)
    # from_arrays knows only the classes that occur; keep all those of the source.
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
    """Prepares batches of `batch` examples of `source`, each through all `views`.

    prefetch: the number of batches read ahead and kept on the devices.
    """
    on_device = isinstance(source.images, jax.Array)
    loader = Loader(
        source=source,
        reader=Reader(source, views, seed),
        views=len(views),
        on_device=on_device,
        batch=batch,
        rows=meshes.rows_here(mesh, batch),
        seed=seed,
        threads=threads,
        prefetch=prefetch,
    )
    # Arrays need no reader unless a view works on the host.
    on_host = any(v.host is not None or v.scene is not None for v in views)
    if on_device or (source.images is not None and not on_host):
        train, sweep = train_from_arrays, sweep_arrays
    else:
        train, sweep = train_from_files, sweep_files
    return Data(
        source=source,
        batch=batch,
        steps_per_epoch=source.size // batch,
        resident={"images": source.images} if on_device else {},
        batches=lambda first, end: prefetch_to_devices(
            train(loader, first, end), mesh, batch, prefetch
        ),
        sweep=lambda: prefetch_to_devices(sweep(loader), mesh, batch, prefetch),
        augment=functools.partial(augment, views),
        unreadable=loader.reader.unreadable,
    )


def prefetch_to_devices(
    dataset: grain.IterDataset, mesh, batch: int, prefetch: int
) -> Iterator[dict]:
    """Host batches -> batches on the devices, `prefetch` of them ahead of use."""
    dataset = dataset.map(functools.partial(meshes.to_devices, mesh, batch))
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=prefetch
        )
    )


# --- which examples a step takes ---------------------------------------------------


def training_indices(loader: Loader, step: int) -> tuple[np.ndarray, int]:
    """(this process's examples of a training step, the epoch)."""
    epoch, position = divmod(step, loader.source.size // loader.batch)
    permutation = permute_epoch(loader.seed, epoch, loader.source.size)
    start = position * loader.batch
    return permutation[start : start + loader.batch][loader.rows], epoch


def sweep_indices(loader: Loader, step: int) -> np.ndarray:
    """This process's examples of a sweep's step; the last step may exceed the size."""
    return (step * loader.batch + np.arange(loader.batch))[loader.rows]


def sweep_steps(loader: Loader) -> int:
    """The number of batches that hold every example once."""
    return -(-loader.source.size // loader.batch)


# --- batches by indexing arrays ----------------------------------------------------


def gather(loader: Loader, indices: np.ndarray) -> dict:
    """The host batch of `indices`, without images if they are on the devices."""
    source = loader.source
    if source.labels is None:
        labels = np.full(len(indices), -1)
    else:
        labels = source.labels[indices]
    batch = {"index": indices.astype(np.int32), "label": labels.astype(np.int32)}
    if not loader.on_device:
        batch["images"] = (source.images[indices],) * loader.views
    return batch


def train_from_arrays(loader: Loader, first: int, end: int) -> grain.IterDataset:
    """Host batches of the steps from `first` up to `end`."""

    def read(step):
        return gather(loader, training_indices(loader, int(step))[0])

    steps = grain.MapDataset.range(first, end).map(read)
    return steps.to_iter_dataset(_read_options(1, loader.prefetch))


def sweep_arrays(loader: Loader) -> grain.IterDataset:
    """Host batches of all examples once; the last one repeats where not "valid"."""
    size = loader.source.size

    def read(step):
        indices = sweep_indices(loader, int(step))
        batch = gather(loader, np.minimum(indices, size - 1))
        return {**batch, "valid": indices < size}

    steps = grain.MapDataset.range(sweep_steps(loader)).map(read)
    return steps.to_iter_dataset(_read_options(1))


# --- batches by reading files, CHUNK examples at a time ----------------------------


def train_from_files(loader: Loader, first: int, end: int) -> grain.IterDataset:
    """Host batches of the steps from `first` up to `end`, decoded in threads."""
    chunks = _chunks_per_batch(loader)

    def read(position):
        step, chunk = divmod(int(position), chunks)
        indices, epoch = training_indices(loader, step)
        return [loader.reader.training(i, epoch) for i in _chunk_of(indices, chunk)]

    dataset = grain.MapDataset.range(first * chunks, end * chunks).map(read)
    return _join_chunks(loader, dataset)


def sweep_files(loader: Loader) -> grain.IterDataset:
    """Host batches of all examples once; the last one repeats where not "valid"."""
    chunks, size = _chunks_per_batch(loader), loader.source.size

    def read(position):
        step, chunk = divmod(int(position), chunks)
        return [
            loader.reader.sweeping(min(i, size - 1), inside=i < size)
            for i in _chunk_of(sweep_indices(loader, step), chunk)
        ]

    dataset = grain.MapDataset.range(sweep_steps(loader) * chunks).map(read)
    return _join_chunks(loader, dataset)


def _chunks_per_batch(loader: Loader) -> int:
    return -(-len(loader.rows) // CHUNK)


def _chunk_of(indices: np.ndarray, chunk: int) -> list[int]:
    return indices[chunk * CHUNK : (chunk + 1) * CHUNK].tolist()


def _join_chunks(loader: Loader, dataset: grain.MapDataset) -> grain.IterDataset:
    chunks = _chunks_per_batch(loader)
    # The threads work one batch ahead of the one being assembled.
    dataset = dataset.to_iter_dataset(_read_options(loader.threads, 2 * chunks))
    return dataset.batch(chunks, drop_remainder=True, batch_fn=stack)


def stack(chunks: Sequence[list[dict]]) -> dict:
    """Stacks lists of examples into one batch, in their order.

    Raises UsageError if the images of a view differ in size.
    """
    examples = [example for chunk in chunks for example in chunk]
    for view in zip(*(e["images"] for e in examples), strict=True):
        shapes = sorted({image.shape for image in view})
        if len(shapes) > 1:
            raise UsageError(
                f"data: the pictures of a batch differ in size, such as {shapes[0]} "
                f"and {shapes[-1]}; begin the views with decode_crop or decode_center."
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _read_options(threads: int, ahead: int = 0) -> grain.ReadOptions:
    return grain.ReadOptions(
        # Fewer than two elements per thread would leave threads idle.
        num_threads=threads,
        prefetch_buffer_size=max(ahead, 2 * threads),
    )


# --- on the devices ----------------------------------------------------------------


def mask_inside(hw: Array, height: int, width: int) -> Array:
    """[B, 2] heights and widths -> bool [B, height, width, 1], the pixels within."""
    rows = jnp.arange(height)[None, :, None, None] < hw[:, 0, None, None, None]
    return rows & (jnp.arange(width)[None, None, :, None] < hw[:, 1, None, None, None])


def augment(views: Sequence[View], batch: dict, resident: dict, rng: Array) -> dict:
    """Runs the device half of the views: adds "views", a tuple of [B, h, w, C] float32.

    batch: "index" [B] and, unless the set is resident, "images", a tuple of uint8
    arrays [B, H, W, C], one per view. "hw" [B, 2] of "targets", if present, is the
    size of each picture on its canvas; pixels beyond it are set to zero. This function
    is pure; it is jitted as part of the training step.
    """
    if resident:
        pictures = jnp.take(resident["images"], batch["index"], axis=0)  # [B, H, W, C]
        images = (pictures,) * len(views)
    else:
        images = batch["images"]
    augmented = []
    for number, (view, image) in enumerate(zip(views, images, strict=True)):
        # Keys follow the example, not its row, so sharding does not change them.
        keys = example_keys(jax.random.fold_in(rng, number), batch["index"])
        image = jax.vmap(view.device)(keys, image)  # [B, h, w, C]
        if view.scene is not None and "hw" in batch["targets"]:
            # Last, since normalize would shift the zeros of the padding.
            mask = mask_inside(batch["targets"]["hw"], *image.shape[1:3])
            image = jnp.where(mask, image, 0)
        augmented.append(image)
    others = {k: v for k, v in batch.items() if k != "images"}
    return {**others, "views": tuple(augmented)}
