"""The vision transformer for dense tasks: maps from several blocks, no final norm.

Blocks and parameter names are those of vit.py, so that pre-trained weights fit. The
differences are for large images. The position table keeps the pre-training grid and is
resampled in the forward pass. Attention can be limited to windows in most blocks
(ViTDet, Li et al., 2022). Relative positions are absent, decomposed (ViTDet) or a bias
per block (BEiT, and mmsegmentation's MAE). Residual branches can have scales that start
at 1 (mmsegmentation's MAE).

A map that windows do not tile is padded with zeros after the norm. The queries, keys
and values of the padding are therefore the biases of their projections, and they are
not masked, as in detectron2. Kernels are initialized as in vit.py, not as in ViTDet.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models import positions, stochastic_depth
from mixjax.models.initializers import torch_default
from mixjax.models.map_attention import RELATIVE, Attention
from mixjax.models.vit import (
    REMAT,
    XAVIER,
    Mlp,
    PatchEmbed,
    check_patches,
    check_width,
    layer_norm,
    run_blocks,
)

Array = jax.Array
Size = tuple[int, int]


class Block(nn.Module):
    """x += Attention(Norm(x)); x += Mlp(Norm(x)); [B, L, D], each branch scaled."""

    attention: Callable  # (name) -> Attention
    mlp_ratio: float
    layer_scale: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, size: Size, drop: Callable) -> Array:
        """size: see Attention. drop: (branch, y) -> y, stochastic depth."""
        y = self.attention(name="attn")(layer_norm(self.dtype, "norm1")(x), size)
        x = x + drop(0, self.scaled(1, y))
        mlp = Mlp(self.mlp_ratio, (XAVIER, XAVIER), self.dtype, name="mlp")
        return x + drop(1, self.scaled(2, mlp(layer_norm(self.dtype, "norm2")(x))))

    def scaled(self, branch: int, y: Array) -> Array:
        if not self.layer_scale:
            return y
        return y * self.param(f"gamma_{branch}", nn.initializers.ones, y.shape[-1:])


class ViTDense(nn.Module):
    """Images [B, H, W, C] -> maps [B, h, w, D] of some blocks, features [B, D]."""

    image_size: Size
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    drop_path: float  # of the last block; it rises from 0 in the first
    class_token: bool
    pretrained_grid: Size  # rows and columns of the table of positions
    relative: str  # "none", "decomposed" or "bias"
    window: int  # side of the windows in tokens; 0: every block is global
    global_blocks: tuple[int, ...]  # blocks that attend to all tokens, from 0
    layer_scale: bool  # scales of the residual branches, which start at 1
    taps: tuple[int, ...]  # the blocks, from 0, whose outputs become `maps`
    remat: str
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_patches(self.image_size, self.patch)
        check_name("model.encoder.relative", self.relative, RELATIVE)
        check_name("model.encoder.remat", self.remat, ["none", *REMAT])
        check_width(self.width, self.heads)
        for field in ("taps", "global_blocks"):
            check_layers(field, getattr(self, field), self.depth)
        self.check_together()

    def check_together(self) -> None:
        """Raises UsageError for settings that exclude each other."""
        if self.window and self.relative == "bias":
            raise UsageError(
                f"model.encoder.window={self.window} does not go with "
                f"model.encoder.relative='bias'; the nearest that do are window=0 and "
                f"relative='decomposed'."
            )
        if self.class_token and (self.window or self.relative == "decomposed"):
            raise UsageError(
                f"model.encoder.class_token=True does not go with "
                f"model.encoder.window={self.window} and "
                f"model.encoder.relative={self.relative!r}; set class_token=False, or "
                f"window=0 and relative='none' or 'bias'."
            )

    @property
    def any_size(self) -> bool:
        """Whether any image size works; only a bias fits no grid but its own."""
        return self.relative != "bias"

    @property
    def grid(self) -> Size:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def embed(self, images: Array, grid: Size) -> Array:
        """Patches, positions and the class token: [B, H, W, C] -> float32 [B, L, D]."""
        inits = XAVIER, torch_default(self.patch**2 * self.channels)
        embed = PatchEmbed(
            self.patch, self.width, *inits, self.dtype, name="patch_embed"
        )
        old = tuple(self.pretrained_grid)
        start = positions.sincos_2d(old, self.width, class_token=True)
        table = self.param("pos_embed", lambda _: jnp.asarray(start)[None])[0]
        if old != grid:
            table = positions.resize(table, old, grid)
        x = embed(images).astype(jnp.float32) + table[1:]
        if not self.class_token:
            return x
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        cls = jnp.broadcast_to(cls + table[:1], (len(x), 1, self.width))
        return jnp.concatenate([cls, x], axis=1)  # [B, 1 + L, D]

    def block(self, layer: int, **kwargs) -> Block:
        side = 0 if layer in self.global_blocks else self.window
        size = (side, side) if side else self.grid
        settings = self.heads, side, self.relative, size, self.class_token, self.dtype
        attention = functools.partial(Attention, *settings)
        return Block(attention, self.mlp_ratio, self.layer_scale, self.dtype, **kwargs)

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        """Encodes inputs["images"], of any size that `any_size` allows.

        Returns maps, a tuple of [B, h, w, D] from the blocks in `taps`; map, the last
        block's; and features [B, D], the mean of map. All are float32 and without the
        class token.
        """
        images = inputs["images"]
        check_patches(images.shape[1:3], self.patch)
        grid = tuple(side // self.patch for side in images.shape[1:3])
        key = self.make_rng("dropout") if train and self.drop_path > 0 else None
        drop = stochastic_depth.dropper(key, self.drop_path, self.depth)

        def run(block, x, layer):
            x = block(x, grid, functools.partial(drop, layer))
            return x, {str(layer): x} if layer in self.taps else {}

        def as_map(x):
            x = x[:, int(self.class_token) :]  # [B, L, D]
            return x.reshape(len(x), *grid, -1)  # [B, h, w, D]

        options = {"remat": self.remat, "scan": False, "run": run}
        x = self.embed(images, grid)
        x, notes = run_blocks(self, self.block, self.depth, x, **options)
        maps = tuple(as_map(notes[str(layer)][0]) for layer in self.taps)
        last = as_map(x)
        return {"maps": maps, "map": last, "features": last.mean(axis=(1, 2))}


def check_layers(field: str, layers: tuple[int, ...], depth: int) -> None:
    """Raises UsageError unless every number is that of a block."""
    for layer in layers:
        if not 0 <= layer < depth:
            raise UsageError(
                f"model.encoder.{field}={tuple(layers)}: there is no block {layer}; "
                f"those of model.encoder.depth={depth} are 0 to {depth - 1}."
            )


make = ViTDense
