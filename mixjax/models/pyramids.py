"""Feature pyramids: the maps of several strides that dense heads read.

SimplePyramid (ViTDet, Li et al., 2022) builds them from one map. Neck builds them from
four maps of one size, as UperNet and mmdetection's detectors do on a plain transformer.
FPN (Lin et al., 2017) is the top-down feature pyramid as implemented in mmdetection.
Levels are numbered by their stride: p4 has stride 2^4 = 16. All maps have type `dtype`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError
from mixjax.models.initializers import torch_default
from mixjax.models.resnet import conv
from mixjax.models.vit import XAVIER, gelu, layer_norm

Array = jax.Array


class Deconv(nn.Module):
    """Doubles the resolution: [B, h, w, C] -> [B, 2 h, 2 w, width].

    A transposed convolution of side 2 and stride 2, with a bias; the kernel is
    [row, column, C, width], not flipped.
    """

    width: int
    kernel_init: Callable
    bias_init: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (2, 2, c, self.width))
        bias = self.param("bias", self.bias_init, (self.width,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = jnp.einsum("bhwc,ijco->bhiwjo", x, kernel)
        return x.reshape(b, 2 * h, 2 * w, self.width) + bias.astype(self.dtype)


def deconv(width: int, dtype: jnp.dtype, name: str) -> Deconv:
    """Makes a Deconv with torch's default initialization."""
    init = torch_default(4 * width)
    return Deconv(width, init, init, dtype, name=name)


def half_max(x: Array) -> Array:
    """Max pooling, 2x2: [B, h, w, C] -> [B, h // 2, w // 2, C]."""
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def every_other(x: Array) -> Array:
    """Drops odd rows and columns: [B, h, w, C] -> [B, ceil(h / 2), ceil(w / 2), C]."""
    return x[:, ::2, ::2]


def along_axes(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Multiplies [B, h, w, C] by [h', h] and [w', w] along its axes: [B, h', w', C]."""
    rows, columns = (jnp.asarray(m, x.dtype) for m in (rows, columns))
    high = jax.lax.Precision.HIGHEST  # a product with ones must not round
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=high)


def nearest(x: Array, size: tuple[int, int]) -> Array:
    """Nearest-neighbour resize, row i from floor(i h / h'): -> [B, *size, C]."""
    pick = [
        np.arange(new)[:, None] * old // new == np.arange(old)
        for old, new in zip(x.shape[1:3], size, strict=True)
    ]
    return along_axes(x, *pick)


class Level(nn.Module):
    """Two convolutions, 1x1 and 3x3, with norms: [B, h, w, C] -> [B, h, w, width]."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, side in enumerate((1, 3), start=1):
            x = conv(self.width, side, 1, self.dtype, f"conv{i}")(x)
            x = layer_norm(self.dtype, f"norm{i}")(x)
        return x


class SimplePyramid(nn.Module):
    """map [B, h, w, D], stride 16 -> pyramid (p2, p3, p4, p5, p6) of `width`."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        x = inputs["map"].astype(self.dtype)
        d, dtype = x.shape[-1], self.dtype
        p2 = gelu(layer_norm(dtype, "p2_norm")(deconv(d // 2, dtype, "p2_up1")(x)))
        maps = {
            "p2": deconv(d // 4, dtype, "p2_up2")(p2),
            "p3": deconv(d // 2, dtype, "p3_up")(x),
            "p4": x,
            "p5": half_max(x),
        }
        levels = [Level(self.width, dtype, name=k)(y) for k, y in maps.items()]
        return {"pyramid": (*levels, every_other(levels[-1]))}


class Neck(nn.Module):
    """Four maps [B, h, w, D] of stride 16 -> pyramid of strides 4, 8, 16 and 32."""

    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        maps = [x.astype(self.dtype) for x in inputs["maps"]]
        if len(maps) != 4:
            raise UsageError(
                f"model.neck is for four maps; model.encoder.taps names {len(maps)}."
            )
        finest, finer, same, coarser = maps
        up = lambda x, name: deconv(x.shape[-1], self.dtype, name)(x)
        ones = nn.initializers.ones
        norm = self.norm(affine=True, scale_init=ones, name="p2_norm")
        p2 = up(gelu(norm(up(finest, "p2_up1"), train=train)), "p2_up2")
        return {"pyramid": (p2, up(finer, "p3_up"), same, half_max(coarser))}


class FPN(nn.Module):
    """Pyramid, fine to coarse -> a pyramid of `width` with one coarser map appended.

    Top-down: the projection of each map is added to the enlarged coarser one. The
    additional map is the coarsest one, subsampled by 2.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        def project(x, side, name):
            options = {"padding": side // 2, "dtype": self.dtype, "kernel_init": XAVIER}
            return nn.Conv(self.width, (side, side), name=name, **options)(x)

        maps = [project(x, 1, f"in{i}") for i, x in enumerate(inputs["pyramid"])]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + nearest(maps[i], maps[i - 1].shape[1:3])
        levels = [project(x, 3, f"out{i}") for i, x in enumerate(maps)]
        return {"pyramid": (*levels, every_other(levels[-1]))}
