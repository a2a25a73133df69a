"""Heads: one linear layer on features or on a map of them."""

import flax.linen as nn
import jax.numpy as jnp

from mixjax.models.dense import dense
from mixjax.models.initializers import torch_default


class Classifier(nn.Module):
    """Features [B, D] -> logits [B, classes], float32.

    init_std: of the truncated normal that the kernel starts from (MAE's code: 2e-5
    for fine-tuning, 0.01 for linear probing); the bias starts at zero.
    """

    classes: int
    init_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        init = nn.initializers.truncated_normal(self.init_std)
        layer = dense(self.classes, self.dtype, "head", kernel_init=init)
        return {"logits": layer(inputs["features"]).astype(jnp.float32)}


class PixelHead(nn.Module):
    """SimMIM's decoder: a map [B, h, w, D] -> prediction, images [B, H, W, C], float32.

    One linear layer predicts the s x s pixels of each place, s = H / h; its outputs are
    in the order (channel, row, column), that of torch's PixelShuffle.
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
        how = {"kernel_init": init, "bias_init": init}
        x = dense(c * side * side, self.dtype, "proj", **how)(x)
        x = x.reshape(b, h, w, c, side, side).transpose(0, 1, 4, 2, 5, 3)
        x = x.reshape(b, *self.image_size, c)  # [B, H, W, C]
        return {"prediction": x.astype(jnp.float32)}
