"""Heads on pooled features."""

import flax.linen as nn
import jax.numpy as jnp

from mixjax.models.dense import dense


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
