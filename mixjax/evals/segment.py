"""Mean intersection over union of held-out pictures, seen through sliding windows.

A picture is resized, cut into windows, and the windows' logits are resized to pixels,
averaged where windows overlap, and resized to the picture's own size, where the highest
is taken (mmsegmentation's slide inference). All of these are linear, one axis after the
other, and windows form a grid: one matrix for rows and one for columns do it all.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.data.pipeline import inside
from mixjax.data.reader import Reader
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.evals import miou_scores
from mixjax.sharding import meshes

LEDGER = True
TOGETHER = 4  # pictures whose windows share batches
STEP = 128  # sides of results are rounded up to it: fewer shapes to compile


def stretch(size: int, cells: int) -> np.ndarray:
    """[size, cells] float32: bilinear resizing of an axis, half-pixel centres."""
    at = ((np.arange(size) + 0.5) * cells / size - 0.5).clip(0, cells - 1)
    near = np.abs(at[:, None] - np.arange(cells)[None])
    return np.maximum(0, 1 - near).astype(np.float32)


def axis(spans: Sequence[tuple[int, int]], crop: int, cells: int, size: int, out: int):
    """[out, n cells]: from the cells of n windows of an axis to `out` places.

    spans: where windows begin and end on the axis of `size` pixels; each shows `crop`
    pixels as `cells`, those beyond its end are not looked at.
    """
    visits = np.zeros((size, 1), np.float32)
    for low, high in spans:
        visits[low:high] += 1
    parts = []
    for low, high in spans:
        part = np.zeros((size, cells), np.float32)
        part[low:high] = stretch(crop, cells)[: high - low]
        parts.append(part / visits)
    return stretch(out, size) @ np.concatenate(parts, axis=1)


def assemble(logits, rows, columns):
    """Window logits [n, m, h, w, K] -> classes [H, W] int32.

    rows: [H, n h]; columns: [W, m w].
    """
    n, m, h, w, k = logits.shape
    grid = logits.transpose(0, 2, 1, 3, 4).reshape(n * h, m * w, k)
    high = jnp.einsum("yp,pqk->yqk", rows, grid, precision="highest")
    whole = jnp.einsum("xq,yqk->yxk", columns, high, precision="highest")
    return whole.argmax(axis=-1).astype(jnp.int32)


def cut(image: np.ndarray, places: np.ndarray, crop: int) -> np.ndarray:
    """Windows [n, crop, crop, C] of an image; black where it is smaller."""
    found = np.zeros((len(places), crop, crop, image.shape[-1]), image.dtype)
    for window, (y1, x1, y2, x2) in zip(found, places, strict=True):
        window[: y2 - y1, : x2 - x1] = image[y1:y2, x1:x2]
    return found


def predictor(method, view, mesh, batch: int) -> Callable:
    """(state, windows uint8 [N, crop, crop, C], sizes [N, 2]) -> logits on the host.

    `batch` go through at a time; beyond a window's size there are zeros.
    """

    def one(state, windows, sizes):
        keys = jax.random.split(jax.random.key(0), len(windows))
        images = jax.vmap(view.device)(keys, windows)
        images = jnp.where(inside(sizes, *images.shape[1:3]), images, 0)
        hw = {"views": (images,), "targets": {"hw": sizes}}
        return method.predict(state, hw)

    run = jax.jit(one, out_shardings=meshes.replicated(mesh))
    rows = meshes.rows_here(mesh, batch)

    def predict(state, windows, sizes):
        short = -len(windows) % batch
        pad = lambda x: np.concatenate([x, np.repeat(x[-1:], short, axis=0)])
        windows, sizes, found = pad(windows), pad(sizes), []
        for i in range(0, len(windows), batch):
            here = windows[i : i + batch][rows], sizes[i : i + batch][rows]
            logits = run(state, *meshes.to_devices(mesh, batch, here))
            found.append(jax.device_get(logits))
        return np.concatenate(found)[: len(windows) - short]

    return predict


def finisher(mesh, crop: int) -> Callable:
    """(window logits [n, h, w, K], their places [n, 4], size of the resized picture,
    size of the file) -> classes [H, W] of the picture as it is in the file."""
    everywhere = meshes.replicated(mesh)
    finish = jax.jit(assemble, out_shardings=everywhere)

    def classes(logits, places, size, out):
        spans = [sorted({(p[a], p[a + 2]) for p in places.tolist()}) for a in (0, 1)]
        given = [logits.reshape(len(spans[0]), len(spans[1]), *logits.shape[1:])]
        for a in (0, 1):
            matrix = axis(spans[a], crop, logits.shape[1 + a], size[a], out[a])
            given.append(np.pad(matrix, ((0, -out[a] % STEP), (0, 0))))
        given = [meshes.put(x, everywhere) for x in given]
        return jax.device_get(finish(*given))[: out[0], : out[1]]

    return classes


def counter(predict: Callable, classes: Callable, crop: int, stride: int, kinds: int):
    """(state, examples) -> confusion counts [K, K] of a few pictures.

    predict: see predictor; classes: see finisher; kinds: K.
    """

    def count(state, group):
        images = [example["images"][0] for example in group]
        places = [miou_scores.windows(*x.shape[:2], crop, stride) for x in images]
        crops = [cut(x, p, crop) for x, p in zip(images, places, strict=True)]
        sizes = np.concatenate([p[:, 2:] - p[:, :2] for p in places])
        logits = predict(state, np.concatenate(crops), sizes.astype(np.float32))
        ends, total = np.cumsum([len(p) for p in places])[:-1], 0
        each = zip(group, images, places, np.split(logits, ends), strict=True)
        for example, image, where, mine in each:
            labels = example["targets"]["map"]
            found = classes(mine, where, image.shape, labels.shape)
            total = total + miou_scores.confusion(found, labels, kinds)
        return total

    return count


def make(
    *,
    protocol: str,
    view: str,
    crop: int,
    stride: int,
    at_once: int,
    examples: int,
    sets,
    method,
    mesh,
    check: Callable,
) -> Callable | None:
    """The evaluator: mIoU, mean accuracy and pixel accuracy in percent.

    view: how a picture is resized, and normalised. crop, stride: of windows, in
    pixels; at_once: how many go through together, rounded up to the devices. examples:
    held-out pictures, spread evenly; 0 for all. None if there is no held-out split.
    """
    held_out = sets.test(examples)
    if held_out is None:
        return None
    if method.predict is None or not held_out.source.classes:
        raise UsageError("evals: segment needs method.name='segment' and its maps.")
    seen = parse(view, "evals.segment.view")
    source, batch = held_out.source, -(-at_once // mesh.size) * mesh.size
    reader = Reader(source, [seen], 0)
    predict, classes = predictor(method, seen, mesh, batch), finisher(mesh, crop)
    count = counter(predict, classes, crop, stride, source.classes)

    def run(state, step, writer):
        total, read = 0, functools.partial(reader.sweeping, inside=True)
        with ThreadPoolExecutor(TOGETHER) as pool:
            for first in range(0, source.size, TOGETHER):
                check()
                numbers = range(first, min(first + TOGETHER, source.size))
                group = [e for e in pool.map(read, numbers) if e["valid"]]
                if group:
                    total = total + count(state, group)
        found = miou_scores.scores(total)
        names = ("mIoU", "mAcc", "aAcc")
        found = {f"{protocol}/{name}": 100 * float(found[name]) for name in names}
        return found | {f"{protocol}/examples": source.size - len(reader.unreadable)}

    return run
