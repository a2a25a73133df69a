"""Small torch networks under public names, for what no installed package has.

build(target, model, stem) is what mixjax.export's check asks for: a module with the
names of timm, torchvision, MAE's official code or detectron2, and with `outputs`, what
it makes of pictures [B, C, H, W]. Written from the papers and from the lists of names.
"""

import torch
import torch.nn.functional as F
from torch import nn


def build(target: str, model: dict, stem: list | None) -> nn.Module:
    """The network of config.model `model` with the names of `target`.

    stem: of a residual network: side, stride, padding, pool.
    """
    encoder, head = model["encoder"], model.get("classifier")
    if encoder["name"] == "resnet":
        net = ResNet(encoder, head, stem, detectron2=target == "detectron2")
    elif encoder["name"] == "swin":
        net = Swin(encoder, head)
    else:
        net = ViT(encoder, head, model.get("norm", {}).get("eps"))
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
        how = width, c["heads"], c["mlp_ratio"], 1e-6, self.beit
        self.blocks = nn.ModuleList(Block(*how) for _ in range(c["depth"]))
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
        how = width, c["heads"], c["mlp_ratio"], 1e-6
        self.decoder_blocks = nn.ModuleList(Block(*how) for _ in range(c["depth"]))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        out = patch.kernel_size[0] ** 2 * patch.in_channels
        self.decoder_pred = nn.Linear(width, out)

    def outputs(self, images):
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x if self.beit else x + self.pos_embed
        shared = self.rel_pos_bias() if hasattr(self, "rel_pos_bias") else None
        for block in self.blocks:
            own = getattr(block.attn, "table", None)
            x = block(x, shared if own is None else own())
        if self.pool == "mean_norm":
            features = self.fc_norm(x[:, 1:].mean(1))
        else:
            x = self.norm(x)
            features = x[:, 0] if self.pool == "class" else x[:, 1:].mean(1)
        found = {"tokens": x, "features": features}
        if hasattr(self, "head"):
            found["logits"] = self.head(features)
        if hasattr(self, "decoder_pred"):
            y = self.decoder_embed(x) + self.decoder_pos_embed
            for block in self.decoder_blocks:
                y = block(y)
            found["prediction"] = self.decoder_pred(self.decoder_norm(y))[:, 1:]
        return found


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
            how = width, heads, c["mlp_ratio"], size, c["window"]
            stage.blocks = nn.Sequential(
                *(WindowBlock(*how, j % 2 * (c["window"] // 2)) for j in range(depth))
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
        found = {"map": x, "features": x.mean((1, 2))}
        if hasattr(self, "head"):
            found["logits"] = self.head.fc(found["features"])
        return found


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
