"""Attention maps of an encoder's last layer on unmixed images.

A map is the attention of the class token, averaged over heads (MixedAE, figure A1); for
networks without a class token (Swin) it is the attention that each token receives,
averaged over all tokens. Written to figures/attention_<step>.png and to TensorBoard.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from mixjax.errors import UsageError
from mixjax.evals import pictures

Array = jax.Array


def last_attention(network, params, stats, images: Array) -> Array:
    """Images [B, H, W, C] -> attention [B, n, n] of the last layer, mean over heads.

    Rows are queries, columns are keys.
    """

    def probe(layer, logits):  # logits: [B, heads, n, n]
        return None, {"attention": jax.nn.softmax(logits).mean(axis=1)}

    outputs = network.encode(params, stats, images, choose=probe)
    return outputs["notes"]["attention"][-1]


def to_map(attention: Array, grid: tuple[int, int]) -> Array:
    """Attention [B, n, n] -> maps [B, rows, columns].

    The n tokens are those of the map, with or without a class token in front. The last
    map of a Swin is coarser than `grid`, that of its input tokens. UsageError if the
    last layer attends within several windows.
    """
    b, n, _ = attention.shape
    rows, columns = grid
    if n == rows * columns + 1:
        # From the class token to the patches.
        return attention[:, 0, 1:].reshape(b, rows, columns)
    # Every patch merging of a Swin halves both sides, and thus quarters the tokens.
    shrink = round((rows * columns / n) ** 0.5)
    small = rows // shrink, columns // shrink
    if small[0] * small[1] != n:
        raise UsageError(
            f"evals.attention: the last layer attends within windows of {n} tokens on "
            f"a map of {small[0]} x {small[1]}; its window must be the whole map."
        )
    return attention.mean(axis=1).reshape(b, *small)


def overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Dims uint8 images [n, H, W, 3] where maps [n, rows, columns] are low.

    Each map is stretched to its own range.
    """
    h, w = images.shape[1:3]
    lit = []
    for image, heat in zip(images, maps, strict=True):
        heat = (heat - heat.min()) / max(np.ptp(heat), 1e-12)
        small = Image.fromarray(np.float32(heat))
        light = np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))
        light = light.clip(0, 1)[..., None]  # bicubic overshoots
        lit.append(np.rint(image * (0.15 + 0.85 * light)).astype(np.uint8))
    return np.stack(lit)


def shower(network) -> Callable:
    """(state, batch, rng) -> {"images", "maps"}, for pictures.painter."""

    def show(state, batch, rng):
        images = batch["views"][0]
        attention = last_attention(network, state.params, state.stats, images)
        return {"images": images, "maps": to_map(attention, network.geometry.grid)}

    return show


def drawer(
    name: str, show: Callable, *, count: int, sets, mesh, workdir: Path
) -> Callable | None:
    """An evaluator that lays the maps of `show` over `count` images.

    show: see shower. Returns None if count is 0.
    """
    if not pictures.wanted(name, count):
        return None
    paint = pictures.painter(show, count, sets, mesh)

    def run(state, step, writer):
        arrays, view = paint(state), sets.eval_view
        images = pictures.to_pixels(arrays["images"], view.mean, view.std)
        lit = overlay(images, arrays["maps"])
        page = pictures.sheet({"input": images, name: lit})
        pictures.publish(page, workdir, name, step, writer)
        return {}

    return run


def make(*, count: int, sets, network, mesh, workdir: Path) -> Callable | None:
    """The evaluator: maps of `count` held-out (or training) images; 0: none."""
    show = shower(network)
    return drawer("attention", show, count=count, sets=sets, mesh=mesh, workdir=workdir)
