"""Residual networks (He et al., 2016) in torchvision's form, also with small stems.

Basic and bottleneck blocks of version 1.5 (the stride of a bottleneck is on its 3x3
convolution), PyTorch's padding, Kaiming-normal kernels by fan-out. Parameters are
float32; `dtype` is that of convolutions and of the residual stream, while the
statistics of norms and the mean over the last map are float32. The padding of pictures
on a common canvas can be excluded from batch statistics.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models.initializers import torch_default

Array = jax.Array
KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Stem(NamedTuple):
    """The first convolution, and whether a 3x3 max-pool of stride 2 follows."""

    side: int
    stride: int
    padding: int
    pool: bool


STEMS = {
    "imagenet": Stem(7, 2, 3, True),
    "cifar": Stem(3, 1, 1, False),
    "small": Stem(3, 1, 1, True),  # STL-10 and Tiny-ImageNet at 64 pixels
    "swav": Stem(3, 1, 2, False),  # SwAV on CIFAR pads by 1 before it pads by 1
}
STEM_INITS = ("kaiming", "torch_default")


def conv(width: int, side: int, stride: int, dtype: jnp.dtype, name: str, **options):
    """A convolution without bias, padded so that only the stride changes the size."""
    options.setdefault("padding", side // 2)
    options.setdefault("kernel_init", KAIMING)
    square = (side, side), (stride, stride)
    return nn.Conv(width, *square, use_bias=False, dtype=dtype, name=name, **options)


def max_pool(x: Array) -> Array:
    """[B, h, w, D] -> [B, ceil(h / 2), ceil(w / 2), D]; padded by minus infinity."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def inside(hw: Array, stride: int, shape: tuple[int, int]) -> Array:
    """Sizes hw [B, 2] in pixels -> [B, h, w] float32, 1 for positions in a picture.

    shape: (h, w) of a map whose positions are `stride` pixels apart; a picture covers
    the first ceil(hw / stride) rows and columns.
    """
    ends = jnp.ceil(hw.astype(jnp.float32) / stride)[:, None]  # [B, 1, 2]
    rows, columns = (jnp.arange(n) < ends[..., i] for i, n in enumerate(shape))
    return (rows[:, :, None] & columns[:, None]).astype(jnp.float32)  # [B, h, w]


def strided(weights: Array | None, stride: int) -> Array | None:
    """Weights [B, h, w] of positions, or None -> those of a map `stride` times coarser.

    ceil(ceil(n / a) / b) equals ceil(n / (a b)), so striding twice loses nothing.
    """
    return weights if weights is None else weights[:, ::stride, ::stride]


class Block(nn.Module):
    """relu(x + branch(x)); [B, h, w, D] -> [B, h / stride, w / stride, D'].

    The branch is two 3x3 convolutions (basic), or 1x1, 3x3 and 1x1 with four times the
    width (bottleneck); x is projected where its shape is not the branch's.
    """

    kind: str
    width: int
    stride: int
    zero_init: bool
    norm: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, weights: Array | None = None) -> Array:
        """weights: [B, h, w] (or broadcastable), of positions in batch statistics.

        `train` is positional, since jax.checkpoint needs to know which arguments are
        not arrays by their position.
        """

        def norm(y, name, scale_init=nn.initializers.ones):
            module = self.norm(affine=True, scale_init=scale_init, name=name)
            return module(y, train=train, weights=weights)

        sides, strides, widths = [3, 3], [self.stride, 1], [self.width, self.width]
        if self.kind == "bottleneck":
            sides, strides = [1, 3, 1], [1, self.stride, 1]
            widths = [self.width, self.width, 4 * self.width]
        y, last = x, len(sides)
        for i, shape in enumerate(zip(widths, sides, strides, strict=True), start=1):
            y, weights = (
                conv(*shape, self.dtype, f"conv{i}")(y),
                strided(weights, shape[2]),
            )
            zero = self.zero_init and i == last
            scale = nn.initializers.zeros if zero else nn.initializers.ones
            y = norm(y, f"bn{i}", scale)
            y = nn.relu(y) if i < last else y
        if x.shape != y.shape:
            x = conv(widths[-1], 1, self.stride, self.dtype, "downsample_conv")(x)
            x = norm(x, "downsample_bn")
        return nn.relu(x + y)


def rematerialised(remat: str) -> Callable:
    """Block, or with remat="block" one that is recomputed in the backward pass."""
    return Block if remat == "none" else nn.remat(Block, static_argnums=(2,))


class ResNet(nn.Module):
    """Images [B, H, W, C] -> a map [B, h, w, D] and its mean, features [B, D]."""

    image_size: tuple[int, int]
    channels: int
    block: str  # "basic" or "bottleneck"
    layers: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # of the stages' 3x3 convolutions
    stem: str
    stem_width: int
    stem_init: str  # "torch_default" if the code of a paper replaces the stem
    zero_init: bool  # blocks start as identities: their last scale is zero
    remat: str  # "block": blocks are recomputed in the backward pass
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.encoder.block", self.block, ["basic", "bottleneck"])
        check_name("model.encoder.stem", self.stem, STEMS)
        check_name("model.encoder.stem_init", self.stem_init, STEM_INITS)
        check_name("model.encoder.remat", self.remat, ["none", "block"])
        if len(self.layers) != len(self.widths):
            raise UsageError(
                f"model.encoder.layers={tuple(self.layers)} and "
                f"model.encoder.widths={tuple(self.widths)} differ in length."
            )

    any_size = True

    @property
    def patch(self) -> int:
        """The distance of neighbouring positions of the last map, in pixels."""
        stem = STEMS[self.stem]
        return stem.stride * (1 + stem.pool) * 2 ** (len(self.layers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last map."""
        stem, halvings = STEMS[self.stem], len(self.layers) - 1
        sides = []
        for side in self.image_size:
            side = (side + 2 * stem.padding - stem.side) // stem.stride + 1
            for _ in range(halvings + stem.pool):
                side = (side + 1) // 2
            sides.append(side)
        return tuple(sides)

    def stem_layers(self, x: Array, train: bool, hw: Array | None):
        """[B, H, W, C] -> [B, h, w, D] before the first stage, and position weights.

        hw: see __call__; without it the weights are None.
        """
        side, stride, padding, pool = STEMS[self.stem]
        init = KAIMING
        if self.stem_init == "torch_default":
            init = torch_default(side * side * self.channels)
        options = {"padding": padding, "kernel_init": init}
        x = conv(self.stem_width, side, stride, self.dtype, "conv1", **options)(x)
        weights = None if hw is None else inside(hw, stride, x.shape[1:3])
        norm = self.norm(affine=True, scale_init=nn.initializers.ones, name="bn1")
        x = nn.relu(norm(x, train=train, weights=weights))
        return (max_pool(x), strided(weights, 2)) if pool else (x, weights)

    @nn.compact
    def __call__(
        self,
        inputs: dict,
        *,
        train: bool,
        stages: bool = False,
        hw: Array | None = None,
    ) -> dict:
        """Encodes inputs["images"], of any size.

        hw: [B, 2] heights and widths of pictures at the upper left of their canvas; the
        rest of the canvas is excluded from batch statistics. None: all counts. Returns
        map [B, h, w, D], features [B, D] (over the whole canvas) and, if `stages`, the
        maps after every stage, all float32.
        """
        block, maps = rematerialised(self.remat), []
        x, weights = self.stem_layers(inputs["images"], train, hw)
        for i, count in enumerate(self.layers):
            for j in range(count):
                stride = 2 if i and not j else 1
                settings = self.block, self.widths[i], stride, self.zero_init
                settings += self.norm, self.dtype
                x = block(*settings, name=f"layer{i + 1}_{j}")(x, train, weights)
                weights = strided(weights, stride)
            maps.append(x.astype(jnp.float32))
        outputs = {"map": maps[-1], "features": maps[-1].mean(axis=(1, 2))}
        return outputs | ({"stages": tuple(maps)} if stages else {})


make = ResNet
