"""Projectors: what is put on features for a contrastive loss and discarded later.

Projector and Predictor are the heads of siamese methods: linear layers as torch starts
them, ReLU between, batch norms where the config says so. As widths, hidden_norm,
hidden_bias, last_bias, last_norm:
  MoCo                          (128,), any, any, True, "none"
  MoCo v2                       (2048, 128), False, True, True, "none"
  SimCLR, W-MSE, BYOL, SwAV     (1024, 64), True, True, True, "affine" or "none"
  SimSiam                       (2048, 2048, 2048), True, False, False, "plain"
  BYOL's and SimSiam's predictor    (512, 2048), True, BYOL True, True, "none"
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models.initializers import torch_default
from mixjax.models.linear import dense
from mixjax.models.vit import gelu

Array = jax.Array
LAST_NORMS = ("none", "affine", "plain")


class TokenProjector(nn.Module):
    """Tokens [..., D] -> projected [..., width]: linear, GELU, linear, no norm.

    hidden: the width between, 0 for D.
    """

    hidden: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        inputs: dict,
        *,
        train: bool,
        read: Callable = lambda x: x["tokens"][:, 1:],
    ) -> dict:
        """read: outputs so far -> the tokens to project."""
        x = read(inputs)
        x = gelu(dense(self.hidden or x.shape[-1], self.dtype, "fc1")(x))
        x = dense(self.width, self.dtype, "fc2")(x)
        return {"projected": x.astype(jnp.float32)}


class Projector(nn.Module):
    """Features [..., D] -> projection [..., widths[-1]], float32."""

    widths: tuple[int, ...]  # of the layers, one after the other
    hidden_norm: bool  # a batch norm before every ReLU
    hidden_bias: bool
    last_bias: bool
    last_norm: str  # after the last layer; "plain": without scale and bias
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    reads, gives = "features", "projection"

    def __post_init__(self):
        super().__post_init__()
        section = f"model.{type(self).__name__.lower()}"
        check_name(f"{section}.last_norm", self.last_norm, LAST_NORMS)
        if not self.widths:
            raise UsageError(f"{section}.widths={self.widths} has no layer.")

    @nn.compact
    def __call__(
        self, inputs: dict, *, train: bool, read: Callable | None = None
    ) -> dict:
        """read: outputs so far -> what to project instead of the features."""
        x = inputs[self.reads] if read is None else read(inputs)
        *hidden, last = self.widths
        for i, width in enumerate(hidden, start=1):
            x = linear(width, x.shape[-1], self.hidden_bias, self.dtype, f"fc{i}")(x)
            x = nn.relu(self.normed(x, self.hidden_norm, True, f"bn{i}", train))
        i, affine = len(self.widths), self.last_norm == "affine"
        x = linear(last, x.shape[-1], self.last_bias, self.dtype, f"fc{i}")(x)
        x = x.astype(jnp.float32)
        x = self.normed(x, self.last_norm != "none", affine, f"bn{i}", train)
        return {self.gives: x}

    def normed(self, x: Array, wanted: bool, affine: bool, name: str, train: bool):
        if not wanted:
            return x
        ones = nn.initializers.ones
        return self.norm(affine=affine, scale_init=ones, name=name)(x, train=train)


class Predictor(Projector):
    """Projection [..., D] -> prediction [..., widths[-1]], float32."""

    reads, gives = "projection", "prediction"


class RegionProjector(nn.Module):
    """A map [B, h, w, D] -> region_map [B, h, w, width], float32.

    One linear layer with bias at every place, that is, a 1x1 convolution; it starts as
    torch's. For regions of mixtures (Lam's mix-ssl).
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        if "map" not in inputs:
            raise UsageError(
                "model.region_projector needs an encoder with a map, such as resnet."
            )
        x = inputs["map"]
        x = linear(self.width, x.shape[-1], True, self.dtype, "fc")(x)
        return {"region_map": x.astype(jnp.float32)}


def linear(width: int, fan_in: int, bias: bool, dtype: jnp.dtype, name: str):
    """A linear layer that starts as torch's."""
    init = torch_default(fan_in)
    options = {"kernel_init": init, "bias_init": init, "dtype": dtype, "name": name}
    return nn.Dense(width, use_bias=bias, **options)


def unit(x: Array, axis: int) -> Array:
    """x / max(norm of x along `axis`, 1e-12), in float32."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=axis, keepdims=True)
    # Of a vector of zeros the norm has no gradient; this has.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class Prototypes(nn.Module):
    """SwAV's: projection [B, d] -> scores [B, K], cosines with K learned directions.

    Also gives embedding [B, d], the unit projection, and prototypes [d, K], the kernel
    itself. It starts as torch's linear layer with columns scaled to length 1; to keep
    that length after updates is the method's part. All float32.
    """

    count: int  # K

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        z = unit(inputs["projection"], -1)
        start = torch_default(z.shape[-1])
        init = lambda *arguments: unit(start(*arguments), 0)
        kernel = self.param("kernel", init, (z.shape[-1], self.count))
        return {"embedding": z, "scores": z @ kernel, "prototypes": kernel}
