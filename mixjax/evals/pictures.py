"""Figures of what a method does to images: a row per image, a column per step.

The columns and their captions come from `method.show`; this file converts them to
pixels and lays them out. A column is normalised images [n, H, W, C], or shares
[n, H, W] from 0 (black) to 1 (light grey), or a pair of either with {name: numbers
[n]}, which are written under its images. Written to figures/<name>_<step>.png and to
TensorBoard.
"""

import contextlib
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixjax.errors import UsageError
from mixjax.sharding import meshes

GAP = 6  # pixels between images
LIGHT = 220  # the grey of a share of 1, which stands out against the white page
LINE = 12  # pixels from one line of text to the next
SMALLEST = 96  # images are enlarged by a whole factor to at least this height


def to_pixels(images: np.ndarray, mean, std) -> np.ndarray:
    """Undoes `normalize`: float [n, H, W, C] -> uint8 [n, H, W, 3].

    Grey images get three equal channels; channels beyond the third are dropped.
    """
    pixels = (images * np.array(std) + np.array(mean)) * 255
    pixels = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]


def wrap(text: str, width: int, font) -> list[str]:
    """Breaks `text` into lines at most `width` pixels wide, but never within a word."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def sheet(columns: dict[str, np.ndarray], notes: Mapping | None = None) -> Image.Image:
    """{caption: uint8 [n, H, W, 3]} -> one page with captions above the columns.

    notes: {caption: the lines of text under each of its n images}.
    """
    notes = notes or {}
    n, h, w, _ = next(iter(columns.values())).shape
    zoom = max(1, -(-SMALLEST // h))
    h, w = h * zoom, w * zoom
    font = ImageFont.load_default()
    captions = {caption: wrap(caption, w, font) for caption in columns}
    top = GAP + LINE * max(map(len, captions.values()))
    texts = [lines for column in notes.values() for lines in column]
    row = h + LINE * max(map(len, texts), default=0) + GAP
    page = Image.new("RGB", (GAP + (w + GAP) * len(columns), top + row * n), "white")
    draw = ImageDraw.Draw(page)

    def write(x, y, lines):
        draw.multiline_text((x, y + 2), "\n".join(lines), "black", font, spacing=2)

    for i, (caption, images) in enumerate(columns.items()):
        x = GAP + i * (w + GAP)
        write(x, 0, captions[caption])
        for j, image in enumerate(images):
            large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
            page.paste(Image.fromarray(large), (x, top + j * row))
        for j, lines in enumerate(notes.get(caption, ())):
            write(x, top + j * row + h, lines)
    return page


def save(page: Image.Image, path: Path) -> bytes:
    """Writes a PNG atomically and returns its bytes."""
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    path.parent.mkdir(exist_ok=True)
    # A rename within a folder is atomic: a reader never sees half a file.
    new = path.with_name(path.name + ".new")
    new.write_bytes(buffer.getvalue())
    os.replace(new, path)
    return buffer.getvalue()


def publish(page: Image.Image, workdir: Path, name: str, step: int, writer) -> None:
    """Writes figures/<name>_<step>.png, and the same image to TensorBoard.

    All processes have the page; only the first one writes.
    """
    if jax.process_index():
        return
    png = save(page, workdir / "figures" / f"{name}_{step:07d}.png")
    writer.image(step, name, png, page.size[::-1])


def wanted(name: str, count: int) -> bool:
    """Whether evals.<name> draws anything; UsageError if `count` is negative."""
    if count < 0:
        raise UsageError(
            f"evals.{name}.count={count} must be 1 or more, or 0 for none."
        )
    return count > 0


def painter(show: Callable, count: int, sets, mesh) -> Callable:
    """state -> the arrays that `show` makes of `count` held-out (or training) images.

    show: (state, batch, rng) -> a dict of arrays whose first axis is that of the
    images; it returns as NumPy arrays, in the same order.
    """
    data = sets.test(count) or sets.bank(count)

    def show_first(state, batch, resident):
        augmented = data.augment(batch, resident, jax.random.key(0))
        first = jax.tree.map(lambda x: x[: min(count, data.source.size)], augmented)
        panels = show(state, first, jax.random.key(0))
        return OrderedDict(panels)  # jit returns a plain dict sorted by key

    run = jax.jit(show_first, out_shardings=meshes.replicated(mesh))

    def paint(state):
        with contextlib.closing(data.sweep()) as batches:
            # The first batch is enough: figures show few images.
            return jax.device_get(run(state, next(batches), data.resident))

    return paint


def columns(panels: Mapping, view) -> dict[str, np.ndarray]:
    """The images of panels as pixels; view: the one that normalised them."""

    def pixels(x):
        if x.ndim == 3:  # shares
            x = np.rint(x.clip(0, 1) * LIGHT).astype(np.uint8)
            return np.repeat(x[..., None], 3, axis=-1)  # [n, H, W, 3]
        return to_pixels(x, view.mean, view.std)

    parts = {k: x[0] if isinstance(x, tuple) else x for k, x in panels.items()}
    return {k: pixels(x) for k, x in parts.items()}


def notes(panels: Mapping) -> dict[str, list[list[str]]]:
    """The numbers of panels as lines of text under each image: "lam 0.617"."""

    def lines(numbers):
        names = list(numbers)
        rows = zip(*numbers.values(), strict=True)
        return [[f"{k} {v:.3g}" for k, v in zip(names, r, strict=True)] for r in rows]

    return {k: lines(x[1]) for k, x in panels.items() if isinstance(x, tuple)}


def page(panels: Mapping, view) -> Image.Image:
    """The page of panels, as method.show returns them."""
    return sheet(columns(panels, view), notes(panels))


def make(*, count: int, sets, method, mesh, workdir: Path) -> Callable | None:
    """The evaluator: method.show on `count` held-out (or training) images; 0: none."""
    if not wanted("pictures", count):
        return None
    paint = painter(method.show, count, sets, mesh)

    def run(state, step, writer):
        figure = page(paint(state), sets.eval_view)
        publish(figure, workdir, "pictures", step, writer)
        return {}

    return run
