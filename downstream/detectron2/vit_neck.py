"""A plain ViT with four maps for an FPN, as iBOT's detector has it.

All blocks look at the whole picture; the class token stays in the sequence; positions
are a table only, resized to the grid of each picture; no last norm. The outputs of four
blocks, all of stride 16, become strides 4, 8, 16 and 32.
"""

from functools import partial

import torch
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.utils import PatchEmbed
from detectron2.modeling.backbone.vit import Block
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

NAMES = ("res2", "res3", "res4", "res5")  # strides 4 to 32, as an FPN counts them


def doubled(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def necks(width: int, norm: str) -> nn.ModuleDict:
    """From stride 16 to strides 4, 8, 16, 32; a norm in the first only."""
    finest = (doubled(width), get_norm(norm, width), nn.GELU(), doubled(width))
    coarsest = nn.MaxPool2d(kernel_size=2, stride=2)
    four = (nn.Sequential(*finest), doubled(width), nn.Identity(), coarsest)
    return nn.ModuleDict(dict(zip(NAMES, four, strict=True)))


class ViTNeck(Backbone):
    """Pictures [B, 3, H, W] -> {name: [B, D, H / stride, W / stride]}."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        drop_path: float,
        out_blocks: tuple[int, ...],  # counted from 0
        table: tuple[int, int],  # the grid of the position table
        patch: int,
        neck_norm: str,
        remat: bool,  # computes blocks again in the backward pass
    ):
        super().__init__()
        self.table, self.patch, self.remat = tuple(table), patch, remat
        self.outputs = dict(zip(out_blocks, NAMES, strict=True))
        size = (patch, patch)
        self.patch_embed = PatchEmbed(kernel_size=size, stride=size, embed_dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + table[0] * table[1], width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(dim=width, num_heads=heads, drop_path=rate, norm_layer=norm)
            for rate in torch.linspace(0, drop_path, depth).tolist()
        )
        self.necks = necks(width, neck_norm)
        self.width = width

    def positions(self, h: int, w: int) -> torch.Tensor:
        """The table for h x w tokens: [1, h * w, D]."""
        grid = self.pos_embed[:, 1:].unflatten(1, self.table).permute(0, 3, 1, 2)
        if (h, w) != self.table:
            # iBOT adds 0.1 so that rounding never loses a row; it shifts the grid.
            scale = ((h + 0.1) / self.table[0], (w + 0.1) / self.table[1])
            grid = interpolate(grid, scale_factor=scale, mode="bicubic")
        return grid.flatten(2).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.patch_embed(x)
        b, h, w, d = x.shape
        x = x.flatten(1, 2) + self.positions(h, w)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        x = torch.cat([first.to(x.dtype), x], dim=1)[:, None]  # [B, 1, 1 + h * w, D]
        maps = {}
        for i, block in enumerate(self.blocks):
            again = self.remat and self.training
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            if i in self.outputs:
                name = self.outputs[i]
                image = x[:, 0, 1:].transpose(1, 2).reshape(b, d, h, w)
                maps[name] = self.necks[name](image)
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        strides = (self.patch // 4, self.patch // 2, self.patch, self.patch * 2)
        return {
            name: ShapeSpec(channels=self.width, stride=stride)
            for name, stride in zip(NAMES, strides, strict=True)
        }


def rate_share(name: str, *, decay: float, depth: int) -> float:
    """What a parameter gets of the rate: decay ** (layers above it), 1 outside blocks.

    Detectron2's own function leaves the class token with the heads; iBOT has it below.
    """
    words = name.split(".")
    layer = depth + 1
    if {"cls_token", "pos_embed", "patch_embed"} & set(words):
        layer = 0
    elif "blocks" in words:
        layer = int(words[words.index("blocks") + 1]) + 1
    return decay ** (depth + 1 - layer)
