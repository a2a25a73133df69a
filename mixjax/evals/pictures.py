"""Pictures of what a method does to images: one row per image, one column per step.

The columns and their captions come from `method.show`; here they are only brought back
to 0..255 and laid out. Written to figures/<name>_<step>.png and to TensorBoard.
"""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixjax import meshes

GAP = 6  # pixels between pictures
SMALLEST = 96  # pictures are enlarged, pixel by pixel, to at least this height


def to_pixels(images: np.ndarray, mean, std) -> np.ndarray:
    """Undoes `normalize`: float [n, H, W, C] -> uint8 [n, H, W, 3]."""
    pixels = (images * np.array(std) + np.array(mean)) * 255
    pixels = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]


def wrap(text: str, width: int, font) -> list[str]:
    """Lines of `text` that are at most `width` pixels wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def sheet(columns: dict[str, np.ndarray]) -> Image.Image:
    """{caption: uint8 [n, H, W, 3]} -> one picture with captions above the columns."""
    n, h, w, _ = next(iter(columns.values())).shape
    zoom = max(1, -(-SMALLEST // h))
    h, w = h * zoom, w * zoom
    font = ImageFont.load_default()
    captions = [wrap(caption, w, font) for caption in columns]
    top = GAP + 12 * max(len(lines) for lines in captions)
    size = (GAP + (w + GAP) * len(columns), top + (h + GAP) * n)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for i, (lines, images) in enumerate(zip(captions, columns.values(), strict=True)):
        x = GAP + i * (w + GAP)
        draw.multiline_text((x, 2), "\n".join(lines), "black", font, spacing=2)
        for j, image in enumerate(images):
            large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
            page.paste(Image.fromarray(large), (x, top + j * (h + GAP)))
    return page


def save(page: Image.Image, path: Path) -> bytes:
    """Writes a PNG in one move and returns its bytes."""
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(buffer.getvalue())
    os.replace(new, path)
    return buffer.getvalue()


def painter(show: Callable, count: int, sets, mesh) -> Callable:
    """state -> what `show` makes of `count` held-out (or training) images.

    show: (state, batch, rng) -> a tree of arrays with the images in front; it comes
    back as NumPy.
    """
    data = sets.test(count) or sets.bank(count)

    def few(state, batch, resident):
        seen = data.augment(batch, resident, jax.random.key(0))
        first = jax.tree.map(lambda x: x[: min(count, data.source.size)], seen)
        return show(state, first, jax.random.key(0))

    run = jax.jit(few, out_shardings=meshes.replicated(mesh))

    def paint(state):
        with contextlib.closing(data.sweep()) as batches:
            return jax.device_get(run(state, next(batches), data.resident))

    return paint


def columns(panels: dict[str, np.ndarray], view) -> dict[str, np.ndarray]:
    """Normalised images as pixels; view: the one that normalised them."""
    return {k: to_pixels(x, view.mean, view.std) for k, x in panels.items()}


def make(*, count: int, sets, method, mesh, workdir: Path) -> Callable:
    """The evaluator: method.show on `count` held-out (or training) images."""
    paint = painter(method.show, count, sets, mesh)

    def run(state, step, writer):
        page = sheet(columns(paint(state), sets.eval_view))
        png = save(page, workdir / "figures" / f"pictures_{step:07d}.png")
        writer.image(step, "pictures", png, page.size[::-1])
        return {}

    return run
