"""Heads: one linear layer on features or on a map of them."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mixjax.errors import UsageError
from mixjax.models.initializers import torch_default
from mixjax.models.linear import dense


class Classifier(nn.Module):
    """Features [B, D] -> logits [B, classes], float32.

    init_std: standard deviation of the kernel's normal initial values (MAE's code: 2e-5
    for fine-tuning, 0.01 for linear probing; its cut at +-2 is never reached) with a
    bias of zero; 0 for torch's uniform initial values of both. feature_norm: a batch
    norm without scale and bias comes first (MAE's linear probe).
    """

    classes: int
    init_std: float
    feature_norm: bool
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        if self.classes < 1:
            raise UsageError(
                f"model.classifier.classes={self.classes} must be at least 1."
            )

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        x = inputs["features"]
        if self.feature_norm:
            ones = nn.initializers.ones
            x = self.norm(affine=False, scale_init=ones, name="norm")(x, train=train)
        init = torch_default(x.shape[-1])
        start = {"kernel_init": init, "bias_init": init}
        if self.init_std:
            start = {"kernel_init": nn.initializers.normal(self.init_std)}
        layer = dense(self.classes, self.dtype, "head", **start)
        return {"logits": layer(x).astype(jnp.float32)}


class PixelHead(nn.Module):
    """SimMIM's decoder: a map [B, h, w, D] -> prediction, images [B, H, W, C], float32.

    One linear layer predicts the s x s pixels of each place, s = H / h. Its outputs are
    ordered (channel, row, column), as torch's PixelShuffle reads them.
    """

    image_size: tuple[int, int]
    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        x = inputs["map"]
        b, h, w, d = x.shape
        side, c = self.image_size[0] // h, self.channels
        init = torch_default(d)  # SimMIM's code leaves the layer as torch makes it
        start = {"kernel_init": init, "bias_init": init}
        x = dense(c * side * side, self.dtype, "proj", **start)(x)
        x = x.reshape(b, h, w, c, side, side).transpose(0, 1, 4, 2, 5, 3)
        x = x.reshape(b, *self.image_size, c)  # [B, H, W, C]
        return {"prediction": x.astype(jnp.float32)}


class TargetHead(nn.Module):
    """A map [B, h, w, D] -> prediction [B, h, w, width], float32, by one linear layer.

    For targets that are not pixels: `width` numbers for each place, such as MaskFeat's
    histograms of oriented gradients.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        init = torch_default(inputs["map"].shape[-1])
        start = {"kernel_init": init, "bias_init": init}
        x = dense(self.width, self.dtype, "proj", **start)(inputs["map"])
        return {"prediction": x.astype(jnp.float32)}
