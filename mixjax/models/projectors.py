"""Projectors: heads that the loss of a pre-training needs and fine-tuning discards.

Projector and Predictor are the heads of siamese methods: linear layers with torch's
default initialization, ReLUs between them, and batch norms as configured. The methods'
values of widths, hidden_norm, hidden_bias, last_bias, last_norm are:
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
    """Tokens [..., D] -> projected [..., width], float32: linear, GELU, linear."""

    hidden: int  # width of the hidden layer; 0 for D
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
        """Projects tokens.

        read: outputs so far -> the tokens to project; by default all except the class
            token.
        """
        x = read(inputs)
        x = gelu(dense(self.hidden or x.shape[-1], self.dtype, "fc1")(x))
        x = dense(self.width, self.dtype, "fc2")(x)
        return {"projected": x.astype(jnp.float32)}


class Projector(nn.Module):
    """Features [..., D] -> projection [..., widths[-1]], float32."""

    widths: tuple[int, ...]  # of the layers, in order
    hidden_norm: bool  # a batch norm before every ReLU
    hidden_bias: bool
    last_bias: bool
    last_norm: str  # after the last layer; "plain" has no scale and bias
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    # Keys of the input and the output; no annotation, or linen would make them fields.
    reads, gives = "features", "projection"

    def __post_init__(self):
        super().__post_init__()
        section = f"model.{type(self).__name__.lower()}"
        check_name(f"{section}.last_norm", self.last_norm, LAST_NORMS)
        if not self.widths:
            raise UsageError(f"{section}.widths={self.widths} has no layers.")

    @nn.compact
    def __call__(
        self, inputs: dict, *, train: bool, read: Callable | None = None
    ) -> dict:
        """Projects the features.

        read: outputs so far -> the array to project instead of inputs[reads].
        """
        x = inputs[self.reads] if read is None else read(inputs)
        *hidden, last = self.widths
        for i, width in enumerate(hidden, start=1):
            x = linear(width, x.shape[-1], self.hidden_bias, self.dtype, f"fc{i}")(x)
            if self.hidden_norm:
                x = self.normalize(x, True, f"bn{i}", train)
            x = nn.relu(x)
        i = len(self.widths)
        x = linear(last, x.shape[-1], self.last_bias, self.dtype, f"fc{i}")(x)
        # Before the norm, so that its output is not rounded to the layers' dtype.
        x = x.astype(jnp.float32)
        if self.last_norm != "none":
            x = self.normalize(x, self.last_norm == "affine", f"bn{i}", train)
        return {self.gives: x}

    def normalize(self, x: Array, affine: bool, name: str, train: bool) -> Array:
        """Applies a batch norm, with a scale that starts at one if it is affine."""
        ones = nn.initializers.ones
        return self.norm(affine=affine, scale_init=ones, name=name)(x, train=train)


class Predictor(Projector):
    """Projection [..., D] -> prediction [..., widths[-1]], float32."""

    reads, gives = "projection", "prediction"


class RegionProjector(nn.Module):
    """A map [B, h, w, D] -> region_map [B, h, w, width], float32.

    A 1x1 convolution with bias and torch's default initialization. It is for losses on
    the regions of mixtures (Lam's mix-ssl).
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
        # A linear layer on the channels of each position is the 1x1 convolution.
        x = linear(self.width, x.shape[-1], True, self.dtype, "fc")(x)
        return {"region_map": x.astype(jnp.float32)}


def linear(width: int, fan_in: int, bias: bool, dtype: jnp.dtype, name: str):
    """Makes a linear layer with torch's default initialization."""
    init = torch_default(fan_in)
    return nn.Dense(
        width,
        use_bias=bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        name=name,
    )


def unit(x: Array, axis: int) -> Array:
    """Returns x / max(norm of x along `axis`, 1e-12) in float32."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=axis, keepdims=True)
    # The norm has no gradient at zero; the root of a clipped square does.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class Prototypes(nn.Module):
    """SwAV's prototypes: projection [B, d] -> scores [B, K].

    The scores are cosines with K learned directions. Also returns embedding [B, d], the
    projection scaled to length 1, and prototypes [d, K], the kernel. All are float32.
    The kernel starts as torch's linear layer with columns scaled to length 1; the
    method is responsible for keeping that length after updates.
    """

    count: int  # K

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        z = unit(inputs["projection"], -1)
        init_linear = torch_default(z.shape[-1])

        def init(key, shape):
            return unit(init_linear(key, shape), 0)

        kernel = self.param("kernel", init, (z.shape[-1], self.count))
        return {"embedding": z, "scores": z @ kernel, "prototypes": kernel}
