"""A ViT and a BEiT with timm's names, and with a decoder those of MAE."""

import torch
import torch.nn.functional as F
from torch import nn


def build(target: str, model: dict, stem: list | None) -> nn.Module:
    net = ViT(
        model["encoder"], model.get("classifier"), model.get("norm", {}).get("eps")
    )
    if "decoder" in model:
        net.add_decoder(model["decoder"])
    return net


class Attention(nn.Module):
    """Fused queries, keys and values; BEiT's have biases of their own but the keys."""

    def __init__(self, width, heads, beit=False):
        super().__init__()
        self.heads, self.beit = heads, beit
        self.qkv = nn.Linear(width, 3 * width, bias=not beit)
        self.proj = nn.Linear(width, width)
        if beit:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x, bias=None):
        b, n, d = x.shape
        y = self.qkv(x)
        if self.beit:
            y = y + torch.cat([self.q_bias, torch.zeros(d), self.v_bias])
        y = y.reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = y.permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5
        weights = weights if bias is None else weights + bias
        mixed = weights.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, ratio, eps, beit=False):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads, beit), Mlp(width, ratio)
        if beit:
            self.gamma_1 = nn.Parameter(torch.ones(width))
            self.gamma_2 = nn.Parameter(torch.ones(width))

    def forward(self, x, bias=None):
        one, two = getattr(self, "gamma_1", 1.0), getattr(self, "gamma_2", 1.0)
        x = x + one * self.attn(self.norm1(x), bias)
        return x + two * self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, channels, width, side, norm=False):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, side, side)
        if norm:
            self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def offsets(rows, columns):
    """[n, n] rows of a table of relative positions, by query and key."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    apart = places[:, None] - places[None]
    apart = apart + torch.tensor([rows - 1, columns - 1])
    return apart[..., 0] * (2 * columns - 1) + apart[..., 1]


class Table(nn.Module):
    """A relative position bias with a class token; None of its index is stored."""

    def __init__(self, grid, heads):
        super().__init__()
        self.grid = grid
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))

    def forward(self):
        table, n = self.relative_position_bias_table, self.grid[0] * self.grid[1]
        count = len(table)
        index = torch.empty(n + 1, n + 1, dtype=torch.long)
        index[1:, 1:] = offsets(*self.grid)
        index[0, 1:], index[1:, 0], index[0, 0] = count - 3, count - 2, count - 1
        return table[index].permute(2, 0, 1)


class ViT(nn.Module):
    """timm's names of a ViT or a BEiT, and with a decoder those of MAE."""

    def __init__(self, c, head, eps):
        super().__init__()
        self.pool, self.beit = c["pool"], c["name"] == "beit"
        width, size = c["width"], c["image_size"]
        grid = [side // c["patch"] for side in size]
        self.length, self.heads = grid[0] * grid[1], c["heads"]
        self.patch_embed = Patches(c["channels"], width, c["patch"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if not self.beit:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.length, width))
        elif c["relative"] == "shared":
            self.rel_pos_bias = Table(grid, c["heads"])
        settings = width, c["heads"], c["mlp_ratio"], 1e-6, self.beit
        self.blocks = nn.ModuleList(Block(*settings) for _ in range(c["depth"]))
        if self.beit and c["relative"] == "each":
            for block in self.blocks:
                table = Table(grid, c["heads"])
                block.attn.relative_position_bias_table = (
                    table.relative_position_bias_table
                )
                block.attn.__dict__["table"] = table
        name = "fc_norm" if self.pool == "mean_norm" else "norm"
        setattr(self, name, nn.LayerNorm(width, eps=1e-6))
        if head:
            self.head = nn.Linear(width, head["classes"])
            if head["feature_norm"]:
                norm = nn.BatchNorm1d(width, affine=False, eps=eps)
                self.head = nn.Sequential(norm, self.head)

    def add_decoder(self, c):
        width, patch = c["width"], self.patch_embed.proj
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + self.length, width))
        self.decoder_embed = nn.Linear(patch.out_channels, width)
        settings = width, c["heads"], c["mlp_ratio"], 1e-6
        self.decoder_blocks = nn.ModuleList(Block(*settings) for _ in range(c["depth"]))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        out = patch.kernel_size[0] ** 2 * patch.in_channels
        self.decoder_pred = nn.Linear(width, out)

    def outputs(self, images):
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x if self.beit else x + self.pos_embed
        shared = self.rel_pos_bias() if hasattr(self, "rel_pos_bias") else None
        for block in self.blocks:
            table = getattr(block.attn, "table", None)
            x = block(x, shared if table is None else table())
        if self.pool == "mean_norm":
            features = self.fc_norm(x[:, 1:].mean(1))
        else:
            x = self.norm(x)
            features = x[:, 0] if self.pool == "class" else x[:, 1:].mean(1)
        outputs = {"tokens": x, "features": features}
        if hasattr(self, "head"):
            outputs["logits"] = self.head(features)
        if hasattr(self, "decoder_pred"):
            y = self.decoder_embed(x) + self.decoder_pos_embed
            for block in self.decoder_blocks:
                y = block(y)
            outputs["prediction"] = self.decoder_pred(self.decoder_norm(y))[:, 1:]
        return outputs
