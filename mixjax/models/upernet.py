"""Heads of semantic segmentation: UperNet (Xiao et al., 2018) and an auxiliary one.

As implemented in mmsegmentation: convolutions without bias, each followed by a batch
norm and a ReLU; bilinear resizing with half-pixel centres; dropout of whole channels
before the last layer, which is initialized from N(0, 0.01^2). Logits are float32.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError
from mixjax.models.linear import dense
from mixjax.models.pyramids import along_axes
from mixjax.models.resnet import conv

Array = jax.Array


def bins(cells: int, count: int) -> np.ndarray:
    """Returns the matrix [count, cells] of torch's adaptive average pooling.

    Bin i averages the cells floor(i n / s) to ceil((i + 1) n / s) - 1, so bins overlap
    if their number does not divide the number of cells.
    """
    i, cell = np.arange(count)[:, None], np.arange(cells)
    inside = (cell >= i * cells // count) & (cell < -(-(i + 1) * cells // count))
    return inside / inside.sum(axis=1, keepdims=True)


def resized(x: Array, like: Array) -> Array:
    """Bilinear resize of [B, h, w, C] to the height and width of another map."""
    shape = (len(x), *like.shape[1:3], x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)


class Unit(nn.Module):
    """A convolution, batch norm and ReLU: [B, h, w, C] -> [B, h, w, width]."""

    width: int
    side: int
    norm: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = conv(self.width, self.side, 1, self.dtype, "conv")(x)
        ones = nn.initializers.ones
        norm = self.norm(affine=True, scale_init=ones, name="bn")
        return nn.relu(norm(x, train=train))


class Pool(nn.Module):
    """Average-pools x to scale x scale bins, projects them and resizes them back."""

    scale: int
    width: int
    norm: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        means = along_axes(x, *(bins(n, self.scale) for n in x.shape[1:3]))
        unit = Unit(self.width, 1, self.norm, self.dtype, name="unit")
        return resized(unit(means, train), x)


class Fuse(nn.Module):
    """Resizes all maps to the first one's size and fuses them: [B, h, w, width]."""

    width: int
    norm: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: list[Array], train: bool) -> Array:
        """`train` is positional: jax.checkpoint marks static arguments by position."""
        x = jnp.concatenate([resized(y, maps[0]) for y in maps], axis=-1)
        return Unit(self.width, 3, self.norm, self.dtype, name="unit")(x, train)


class Classes(nn.Module):
    """Channel dropout, then the last layer: [B, h, w, C] -> [B, h, w, classes]."""

    classes: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        options = {"kernel_init": nn.initializers.normal(0.01)}
        layer = dense(self.classes, self.dtype, "proj", **options)
        return layer(drop(x)).astype(jnp.float32)


class UperHead(nn.Module):
    """Pyramid, fine to coarse -> logits [B, h, w, classes] at the finest map's size."""

    width: int
    classes: int
    dropout: float  # the probability that a channel of an image is dropped
    scales: tuple[int, ...]  # side of each pooled map, in bins
    remat: bool  # the backward pass recomputes the input of the widest layer
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check("uper_head", self.classes, self.dropout)
        if not self.scales or min(self.scales) < 1:
            raise UsageError(
                f"model.uper_head.scales={tuple(self.scales)} must be numbers from 1 "
                f"up, such as (1, 2, 3, 6)."
            )

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        options = {"width": self.width, "norm": self.norm, "dtype": self.dtype}
        *finer, coarsest = (x.astype(self.dtype) for x in inputs["pyramid"])
        pooled = [
            Pool(scale=scale, name=f"pool{i}", **options)(coarsest, train)
            for i, scale in enumerate(self.scales)
        ]
        top = Fuse(name="top", **options)([coarsest, *pooled], train)
        maps = [
            Unit(side=1, name=f"lateral{i}", **options)(x, train)
            for i, x in enumerate(finer)
        ]
        for i in reversed(range(len(maps))):
            above = maps[i + 1] if i + 1 < len(maps) else top
            maps[i] = maps[i] + resized(above, maps[i])
        maps = [
            Unit(side=3, name=f"smooth{i}", **options)(x, train)
            for i, x in enumerate(maps)
        ]
        fuse = nn.remat(Fuse, static_argnums=(2,)) if self.remat else Fuse
        x = fuse(name="fuse", **options)([*maps, top], train)
        head = Classes(self.classes, self.dropout, self.dtype, name="classes")
        return {"logits": head(x, train)}


class FCNHead(nn.Module):
    """Auxiliary head: one of `maps` [B, h, w, D] -> aux_logits [B, h, w, classes]."""

    map: int  # which of the maps, from 0
    width: int
    classes: int
    dropout: float
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check("fcn_head", self.classes, self.dropout)

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        maps = inputs["maps"]
        if not 0 <= self.map < len(maps):
            raise UsageError(
                f"model.fcn_head.map={self.map}: there are {len(maps)} maps "
                f"(model.encoder.taps), 0 to {len(maps) - 1}."
            )
        unit = Unit(self.width, 3, self.norm, self.dtype, name="unit")
        x = unit(maps[self.map].astype(self.dtype), train)
        head = Classes(self.classes, self.dropout, self.dtype, name="classes")
        return {"aux_logits": head(x, train)}


def check(part: str, classes: int, dropout: float) -> None:
    """Raises UsageError for a head without classes or a dropout outside [0, 1)."""
    if classes < 1:
        raise UsageError(f"model.{part}.classes={classes} must be at least 1.")
    if not 0 <= dropout < 1:
        raise UsageError(f"model.{part}.dropout={dropout} must be from 0 to below 1.")
