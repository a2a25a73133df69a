"""Mean intersection over union on held-out images, by sliding-window inference.

As in mmsegmentation ("slide" mode): an image is resized and cut into windows; the
windows' logits are resized to pixels, averaged where windows overlap, and resized to
the original size of the image, where the highest logit gives the class. All of these
steps are linear and separable, and the windows form a grid, so that one matrix for the
rows and one for the columns do them all.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.data.pipeline import mask_inside
from mixjax.data.reader import Reader
from mixjax.data.views import parse
from mixjax.errors import UsageError
from mixjax.evals import miou_scores
from mixjax.sharding import meshes

LEDGER = True
TOGETHER = 4  # images whose windows share batches
STEP = 128  # sides of results are rounded up to it: fewer shapes to compile


class Segmentation(NamedTuple):
    """What evaluates a segmenter on windows of images."""

    predict: Callable  # see window_predictor
    assemble: Callable  # see assembler
    crop: int  # side of a window in pixels
    stride: int  # from one window to the next, in pixels
    classes: int


def resize_matrix(size: int, cells: int) -> np.ndarray:
    """The matrix [size, cells] float32 that resizes an axis of `cells` to `size`.

    Bilinear with half-pixel centres, as align_corners=False of torch.
    """
    at = ((np.arange(size) + 0.5) * cells / size - 0.5).clip(0, cells - 1)
    distance = np.abs(at[:, None] - np.arange(cells)[None])
    return np.maximum(0, 1 - distance).astype(np.float32)


def axis_matrix(
    spans: Sequence[tuple[int, int]], crop: int, cells: int, size: int, out: int
):
    """The matrix [out, n cells] from the cells of n windows of an axis to `out` pixels.

    spans: where windows begin and end on the axis of `size` pixels. A window shows
    `crop` pixels as `cells`; those beyond its end are padding and are dropped.
    """
    visits = np.zeros((size, 1), np.float32)  # windows over each pixel
    for low, high in spans:
        visits[low:high] += 1
    parts = []
    for low, high in spans:
        part = np.zeros((size, cells), np.float32)
        part[low:high] = resize_matrix(crop, cells)[: high - low]
        parts.append(part / visits)
    return resize_matrix(out, size) @ np.concatenate(parts, axis=1)


def assemble(logits, rows, columns):
    """Logits of a grid of windows [n, m, h, w, K] -> classes [H, W] int32.

    rows: [H, n h]; columns: [W, m w], from axis_matrix.
    """
    n, m, h, w, k = logits.shape
    grid = logits.transpose(0, 2, 1, 3, 4).reshape(n * h, m * w, k)
    # Full precision: rounded products would flip the argmax where classes meet.
    tall = jnp.einsum("yp,pqk->yqk", rows, grid, precision="highest")  # [H, m w, K]
    whole = jnp.einsum("xq,yqk->yxk", columns, tall, precision="highest")  # [H, W, K]
    return whole.argmax(axis=-1).astype(jnp.int32)


def cut(image: np.ndarray, places: np.ndarray, crop: int) -> np.ndarray:
    """Windows [n, crop, crop, C] of an image, padded with zeros where it is smaller.

    places: [n, 4], (y1, x1, y2, x2).
    """
    windows = np.zeros((len(places), crop, crop, image.shape[-1]), image.dtype)
    for window, (y1, x1, y2, x2) in zip(windows, places, strict=True):
        window[: y2 - y1, : x2 - x1] = image[y1:y2, x1:x2]
    return windows


def window_predictor(method, view, mesh, batch: int) -> Callable:
    """(state, windows uint8 [N, crop, crop, C], sizes [N, 2]) -> logits on the host.

    Windows run in batches of `batch`; pixels beyond a window's size are zeros, after
    normalisation, as in training.
    """

    def run_batch(state, windows, sizes):
        keys = jax.random.split(jax.random.key(0), len(windows))
        images = jax.vmap(view.device)(keys, windows)
        images = jnp.where(mask_inside(sizes, *images.shape[1:3]), images, 0)
        return method.predict(state, {"views": (images,), "targets": {"hw": sizes}})

    run = jax.jit(run_batch, out_shardings=meshes.replicated(mesh))
    rows = meshes.rows_here(mesh, batch)  # of a batch, those that this process feeds

    def predict(state, windows, sizes):
        missing = -len(windows) % batch
        # Repeat the last window to fill the last batch: one shape, one compilation.
        pad = lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
        windows, sizes, results = pad(windows), pad(sizes), []
        for i in range(0, len(windows), batch):
            local = windows[i : i + batch][rows], sizes[i : i + batch][rows]
            logits = run(state, *meshes.to_devices(mesh, batch, local))
            results.append(jax.device_get(logits))
        return np.concatenate(results)[: len(windows) - missing]

    return predict


def assembler(mesh, crop: int) -> Callable:
    """(window logits [n, h, w, K], their places [n, 4], shape of the resized image,
    shape of the original) -> classes [H, W] of the original image, on the host."""
    everywhere = meshes.replicated(mesh)
    assemble_on_devices = jax.jit(assemble, out_shardings=everywhere)

    def classes(logits, places, size, out):
        spans = [sorted({(p[a], p[a + 2]) for p in places.tolist()}) for a in (0, 1)]
        grid = logits.reshape(len(spans[0]), len(spans[1]), *logits.shape[1:])
        arrays = [grid]
        for a in (0, 1):  # rows, columns
            matrix = axis_matrix(spans[a], crop, logits.shape[1 + a], size[a], out[a])
            # Rows of zeros round the size up to STEP; what they yield is cut off below.
            arrays.append(np.pad(matrix, ((0, -out[a] % STEP), (0, 0))))
        arrays = [meshes.put(x, everywhere) for x in arrays]
        return jax.device_get(assemble_on_devices(*arrays))[: out[0], : out[1]]

    return classes


def count_pixels(segmentation: Segmentation, state, examples: list[dict]) -> np.ndarray:
    """The confusion counts [K, K] of a few images, whose windows share batches."""
    crop, stride = segmentation.crop, segmentation.stride
    images = [example["images"][0] for example in examples]
    places = [miou_scores.windows(*x.shape[:2], crop, stride) for x in images]
    crops = [cut(x, p, crop) for x, p in zip(images, places, strict=True)]
    sizes = np.concatenate([p[:, 2:] - p[:, :2] for p in places])
    logits = segmentation.predict(
        state, np.concatenate(crops), sizes.astype(np.float32)
    )
    ends, total = np.cumsum([len(p) for p in places])[:-1], 0
    logits_by_image = np.split(logits, ends)
    for i, example in enumerate(examples):
        labels = example["targets"]["map"]
        predicted = segmentation.assemble(
            logits_by_image[i], places[i], images[i].shape, labels.shape
        )
        total = total + miou_scores.confusion(predicted, labels, segmentation.classes)
    return total


def evaluate(
    segmentation: Segmentation, reader: Reader, check: Callable, state
) -> dict[str, float]:
    """{metric: percent} over all readable images, and how many there were."""
    size, total = reader.source.size, 0
    read = lambda index: reader.sweeping(index, inside=True)
    with ThreadPoolExecutor(TOGETHER) as pool:
        for first in range(0, size, TOGETHER):
            check()
            indices = range(first, min(first + TOGETHER, size))
            examples = [e for e in pool.map(read, indices) if e["valid"]]
            if examples:
                total = total + count_pixels(segmentation, state, examples)
    fractions = miou_scores.scores(total)
    metrics = {name: 100 * float(fractions[name]) for name in ("mIoU", "mAcc", "aAcc")}
    return metrics | {"examples": size - len(reader.unreadable)}


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

    view: how to resize and normalise an image. crop, stride: of the windows, in pixels;
    at_once: windows per batch, rounded up to a multiple of the devices. examples:
    number of held-out images, spread evenly; 0 for all. Returns None if there is no
    held-out split.
    """
    held_out = sets.test(examples)
    if held_out is None:
        return None
    source = held_out.source
    if method.predict is None or not source.classes:
        raise UsageError(
            "evals: name='segment' needs method.name='segment' and data with maps of "
            "classes."
        )
    parsed_view = parse(view, "evals.segment.view")
    reader = Reader(source, [parsed_view], 0)
    batch = -(-at_once // mesh.size) * mesh.size
    segmentation = Segmentation(
        window_predictor(method, parsed_view, mesh, batch),
        assembler(mesh, crop),
        crop,
        stride,
        source.classes,
    )

    def run(state, step, writer):
        metrics = evaluate(segmentation, reader, check, state)
        return {f"{protocol}/{name}": value for name, value in metrics.items()}

    return run
