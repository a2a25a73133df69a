"""A ConvNeXt with timm's names."""

import torch
from torch import nn


def build(target: str, model: dict, stem: list | None) -> nn.Module:
    return ConvNeXt(model["encoder"], model.get("classifier"))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps [B, C, H, W]."""

    def __init__(self, width):
        super().__init__(width, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, ratio)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.conv_dw(x).permute(0, 2, 3, 1)  # [B, H, W, C]
        y = self.mlp(self.norm(y)) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, before, width, depth, ratio):
        super().__init__()
        self.downsample = nn.Identity()
        if before:
            conv = nn.Conv2d(before, width, 2, stride=2)
            self.downsample = nn.Sequential(ChannelNorm(before), conv)
        self.blocks = nn.Sequential(*(Block(width, ratio) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    def __init__(self, encoder, classifier):
        super().__init__()
        widths, side = encoder["widths"], encoder["stem"]
        conv = nn.Conv2d(encoder["channels"], widths[0], side, stride=side)
        self.stem = nn.Sequential(conv, ChannelNorm(widths[0]))
        stages = []
        for i, (width, depth) in enumerate(zip(widths, encoder["depths"], strict=True)):
            before = widths[i - 1] if i else 0
            stages.append(Stage(before, width, depth, encoder["mlp_ratio"]))
        self.stages = nn.Sequential(*stages)
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(widths[-1], eps=1e-6)})
        if classifier:
            self.head["fc"] = nn.Linear(widths[-1], classifier["classes"])

    def outputs(self, images):
        """{name: tensor} of images [B, C, H, W], with mixjax's names and axes."""
        x = self.stages(self.stem(images))  # [B, D, h, w]
        features = self.head["norm"](x.mean((2, 3)))  # [B, D]
        outputs = {"map": x.permute(0, 2, 3, 1), "features": features}
        if "fc" in self.head:
            outputs["logits"] = self.head["fc"](features)
        return outputs
