"""A Swin transformer with timm's names."""

import torch
from torch import nn

from tests.support.torch_models.vit import Block, Patches, offsets


def build(target: str, model: dict, stem: list | None) -> nn.Module:
    return Swin(model["encoder"], model.get("classifier"))


class WindowBlock(Block):
    def __init__(self, width, heads, ratio, size, window, shift):
        super().__init__(width, heads, ratio, 1e-5)
        self.size = size
        small = min(size) <= window
        self.window, self.shift = (min(size), 0) if small else (window, shift)
        rows = (2 * self.window - 1) ** 2
        self.attn.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))

    def cut(self, x):
        """[B, h, w, D] -> [B, windows, n, D]."""
        (b, h, w, d), m = x.shape, self.window
        x = x.reshape(b, h // m, m, w // m, m, d).transpose(2, 3)
        return x.reshape(b, -1, m * m, d)

    def bias(self):
        """[windows, heads, n, n]; tokens brought together by the shift stay apart."""
        table, m = self.attn.relative_position_bias_table, self.window
        bias = table[offsets(m, m)].permute(2, 0, 1)[None]
        if not self.shift:
            return bias
        rows, columns = (torch.arange(side) for side in self.size)
        far = [x >= len(x) - self.shift for x in (rows, columns)]
        near = [x >= len(x) - m for x in (rows, columns)]
        place = [a.long() + b.long() for a, b in zip(far, near, strict=True)]
        region = (3 * place[0][:, None] + place[1]).float()[None, ..., None]
        region = self.cut(region)[0, ..., 0]
        apart = region[:, :, None] != region[:, None]
        return bias + apart[:, None] * -100.0

    def forward(self, x):
        b, h, w, d = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = self.cut(y)
        count, n = y.shape[1:3]
        bias = self.bias().expand(count, -1, -1, -1).repeat(b, 1, 1, 1)
        y = self.attn(y.reshape(b * count, n, d), bias)
        m = self.window
        y = y.reshape(b, h // m, w // m, m, m, d).transpose(2, 3).reshape(b, h, w, d)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x):
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """timm's names of today: a merging opens its stage."""

    def __init__(self, c, head):
        super().__init__()
        self.grid = [side // c["patch"] for side in c["image_size"]]
        width = c["width"]
        self.patch_embed = Patches(c["channels"], width, c["patch"], norm=True)
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(c["depths"], c["heads"], strict=True)):
            stage = nn.Module()
            if i:
                stage.downsample = Merging(width)
                width = 2 * width
            size = [side // 2**i for side in self.grid]
            settings = width, heads, c["mlp_ratio"], size, c["window"]
            stage.blocks = nn.Sequential(
                *(
                    WindowBlock(*settings, j % 2 * (c["window"] // 2))
                    for j in range(depth)
                )
            )
            self.layers.append(stage)
        self.norm = nn.LayerNorm(width)
        if head:
            self.head = nn.Module()
            self.head.fc = nn.Linear(width, head["classes"])

    def outputs(self, images):
        x = self.patch_embed.norm(self.patch_embed(images))
        x = x.reshape(len(x), *self.grid, -1)
        for stage in self.layers:
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)
            x = stage.blocks(x)
        x = self.norm(x)
        outputs = {"map": x, "features": x.mean((1, 2))}
        if hasattr(self, "head"):
            outputs["logits"] = self.head.fc(outputs["features"])
        return outputs
