"""Decoders of masked autoencoders, which predict pixels from encoded tokens."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import check_name
from mixjax.models import positions
from mixjax.models.linear import dense
from mixjax.models.vit import Block, layer_norm, run_blocks

Array = jax.Array


class TokenDecoder(nn.Module):
    """MAE's decoder (He et al., 2022, section 3): a small ViT over all positions.

    Maps tokens [B, 1 + n, D] to the prediction [B, L, P], with P = patch * patch *
    channels, and to decoded [B, L, d], the tokens before the last layer. Both are
    float32.
    """

    grid: tuple[int, int]
    out: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    remat: str
    scan: bool
    dtype: jnp.dtype
    # "learned" is for imported weights that include the table, such as transformers'
    # ViTMAE. Recipes, and runs from before this field existed, use the default.
    position: str = "sincos"

    def __post_init__(self):
        super().__post_init__()
        check_name("model.decoder.position", self.position, ["sincos", "learned"])

    @nn.compact
    def __call__(
        self, inputs: dict, *, train: bool, restore: Callable | None = None
    ) -> dict:
        """Decodes inputs["tokens"].

        restore: (tokens [B, 1 + n, d], mask token [1, 1, d]) -> [B', 1 + L, d]. Puts
            every token back at its position and fills the others with the mask
            token. None if the tokens already cover all positions.
        """
        x = dense(self.width, self.dtype, "embed")(inputs["tokens"])  # [B, 1 + n, d]
        # Created even if it is not used, so that the parameters do not depend on the
        # call.
        mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, self.width)
        )
        if restore is not None:
            x = restore(x, mask_token.astype(x.dtype))  # [B', 1 + L, d]
        table = positions.sincos_2d(self.grid, self.width, class_token=True)
        if self.position == "learned":
            initial_table = jnp.asarray(table)[None]  # [1, 1 + L, d]
            table = self.param("pos_embed", lambda _: initial_table)[0]
        # The residual stream stays in float32, whatever the layers compute in.
        x = x.astype(jnp.float32) + table

        def block(layer, **kwargs):
            return Block(self.heads, self.mlp_ratio, self.dtype, **kwargs)

        x, _ = run_blocks(self, block, self.depth, x, remat=self.remat, scan=self.scan)
        # The class token has no pixels to predict.
        x = layer_norm(self.dtype, "norm")(x)[:, 1:]  # [B', L, d]
        prediction = dense(self.out, self.dtype, "pred")(x).astype(jnp.float32)
        return {"prediction": prediction, "decoded": x.astype(jnp.float32)}
