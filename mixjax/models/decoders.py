"""Decoders of masked autoencoders: from encoded tokens back to pixels."""

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

    Tokens [B, 1 + n, D] -> prediction [B, L, P], P = patch * patch * channels, and
    decoded [B, L, d], the tokens that it was read from.
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
    # "learned" only where weights of others say so (transformers' ViTMAE keeps its
    # table among them); recipes, and runs older than this field, have none.
    position: str = "sincos"

    def __post_init__(self):
        super().__post_init__()
        check_name("model.decoder.position", self.position, ["sincos", "learned"])

    @nn.compact
    def __call__(
        self, inputs: dict, *, train: bool, restore: Callable | None = None
    ) -> dict:
        """Decodes inputs["tokens"].

        restore: (tokens [B, 1 + n, d], mask token [1, 1, d]) -> [B', 1 + L, d] puts
            every token at its place and the mask token where none was encoded.
        """
        x = dense(self.width, self.dtype, "embed")(inputs["tokens"])
        mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, self.width)
        )
        if restore is not None:
            x = restore(x, mask_token.astype(x.dtype))  # [B', 1 + L, d]
        table = positions.sincos_2d(self.grid, self.width, class_token=True)
        if self.position == "learned":
            fixed = jnp.asarray(table)[None]
            table = self.param("pos_embed", lambda _: fixed)[0]
        x = x.astype(jnp.float32) + table

        def block(layer, **kwargs):
            return Block(self.heads, self.mlp_ratio, self.dtype, **kwargs)

        x, _ = run_blocks(self, block, self.depth, x, remat=self.remat, scan=self.scan)
        x = layer_norm(self.dtype, "norm")(x)[:, 1:]  # [B', L, d]
        prediction = dense(self.out, self.dtype, "pred")(x).astype(jnp.float32)
        return {"prediction": prediction, "decoded": x.astype(jnp.float32)}
