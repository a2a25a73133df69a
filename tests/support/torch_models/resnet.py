"""A residual network with the names of torchvision, or of detectron2."""

import torch.nn.functional as F
from torch import nn


def build(target: str, model: dict, stem: list | None) -> nn.Module:
    """stem: side, stride, padding and whether a pooling follows."""
    detectron2 = target == "detectron2"
    return ResNet(model["encoder"], model.get("classifier"), stem, detectron2)


class Convolution(nn.Conv2d):
    """detectron2's: a convolution with its norm inside."""

    def __init__(self, *args, **how):
        super().__init__(*args, bias=False, **how)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class ResidualBlock(nn.Module):
    def __init__(self, kind, before, width, stride, detectron2):
        super().__init__()
        sides, strides, widths = [3, 3], [stride, 1], [width, width]
        if kind == "bottleneck":
            sides, strides = [1, 3, 1], [1, stride, 1]
            widths = [width, width, 4 * width]
        self.count, self.detectron2, now = len(sides), detectron2, before
        for i, how in enumerate(zip(widths, sides, strides, strict=True), start=1):
            out, side, step = how
            plain = {"stride": step, "padding": side // 2}
            if detectron2:
                setattr(self, f"conv{i}", Convolution(now, out, side, **plain))
            else:
                conv = nn.Conv2d(now, out, side, bias=False, **plain)
                setattr(self, f"conv{i}", conv)
                setattr(self, f"bn{i}", nn.BatchNorm2d(out))
            now = out
        self.out = now
        if (before, 1) != (now, stride):
            if detectron2:
                self.shortcut = Convolution(before, now, 1, stride=stride)
            else:
                conv = nn.Conv2d(before, now, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(now))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"conv{i}")(y)
            y = y if self.detectron2 else getattr(self, f"bn{i}")(y)
            y = F.relu(y) if i < self.count else y
        for name in ("downsample", "shortcut"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return F.relu(x + y)


class ResNet(nn.Module):
    """torchvision's names, or detectron2's."""

    def __init__(self, c, head, stem, detectron2):
        super().__init__()
        side, stride, padding, self.pool = stem
        self.detectron2, self.count = detectron2, len(c["layers"])
        plain = c["channels"], c["stem_width"], side
        how = {"stride": stride, "padding": padding}
        top = self
        if detectron2:
            top = self.stem = nn.Module()
            top.conv1 = Convolution(*plain, **how)
        else:
            self.conv1 = nn.Conv2d(*plain, bias=False, **how)
            self.bn1 = nn.BatchNorm2d(c["stem_width"])
        now = c["stem_width"]
        for i, (count, width) in enumerate(zip(c["layers"], c["widths"], strict=True)):
            blocks = []
            for j in range(count):
                step = 2 if i and not j else 1
                blocks.append(ResidualBlock(c["block"], now, width, step, detectron2))
                now = blocks[-1].out
            name = f"res{i + 2}" if detectron2 else f"layer{i + 1}"
            setattr(self, name, nn.Sequential(*blocks))
        if head:
            top.fc = nn.Linear(now, head["classes"])

    def outputs(self, x):
        x = self.stem.conv1(x) if self.detectron2 else self.bn1(self.conv1(x))
        x = F.relu(x)
        x = F.max_pool2d(x, 3, 2, 1) if self.pool else x
        for i in range(self.count):
            x = getattr(self, f"res{i + 2}" if self.detectron2 else f"layer{i + 1}")(x)
        found = {"map": x.permute(0, 2, 3, 1), "features": x.mean((2, 3))}
        fc = getattr(self.stem if self.detectron2 else self, "fc", None)
        return found | ({} if fc is None else {"logits": fc(found["features"])})
