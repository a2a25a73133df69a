"""Projectors: what is put on features for a contrastive loss and discarded later."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mixjax.models.dense import dense
from mixjax.models.vit import gelu


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
