"""Names of residual networks: torchvision's (timm's too), MoCo's and detectron2's.

detectron2's are what MoCo's public converter makes of torchvision's: what is in no
"layer" gets "stem.", layerN is res(N+1), bnK is convK.norm, and a shortcut's two parts
are shortcut and shortcut.norm. A classifier becomes stem.fc, which detectron2 ignores.
"""

import re
from collections.abc import Mapping

from mixjax.export import read_shapes
from mixjax.export.families import (
    Family,
    Library,
    NoSuchNetwork,
    classes_of,
    timm_outputs,
)
from mixjax.export.name_rules import BATCH_NORM, CONV, LINEAR, Arrays, Rule, beneath
from mixjax.export.weights import Weights
from mixjax.models.resnet import STEMS

BLOCK = "encoder/layer{i}_{j}"
BODY = (
    Rule("encoder/conv1", "conv1", CONV),
    Rule("encoder/bn1", "bn1", BATCH_NORM),
    *(
        rule
        for k in (1, 2, 3)
        for rule in (
            Rule(f"{BLOCK}/conv{k}", f"layer{{i}}.{{j}}.conv{k}", CONV),
            Rule(f"{BLOCK}/bn{k}", f"layer{{i}}.{{j}}.bn{k}", BATCH_NORM),
        )
    ),
    Rule(f"{BLOCK}/downsample_conv", "layer{i}.{j}.downsample.0", CONV),
    Rule(f"{BLOCK}/downsample_bn", "layer{i}.{j}.downsample.1", BATCH_NORM),
)
HEAD = (Rule("classifier/head", "fc", LINEAR),)
TORCHVISION = (*BODY, *HEAD)
MOCO = (
    *beneath("encoder_q.", BODY),
    Rule("projector/fc1", "encoder_q.fc", LINEAR),
    Rule("projector/fc1", "encoder_q.fc.0", LINEAR),
    Rule("projector/fc2", "encoder_q.fc.2", LINEAR),
)


def detectron(name: str) -> str:
    """torchvision's name of a layer -> detectron2's."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = name.replace("layer{i}", "res{i+1}")
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut")
    return name.replace("downsample.1", "shortcut.norm")


DETECTRON2 = tuple(r._replace(theirs=detectron(r.theirs)) for r in TORCHVISION)


# --- config.model from shapes ----------------------------------------------------


def model_of(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    kernel, channels = first
    section = hints["encoder"]
    stages = range(1, 1 + read_shapes.count(arrays, "encoder/layer%d_0/"))
    widths = [arrays[f"encoder/layer{i}_0/conv1/kernel"].shape[-1] for i in stages]
    # Only the stem of ImageNet has a kernel of 7; the small ones look alike.
    stem = "imagenet" if kernel == 7 else section.get("stem", "cifar")
    side = 224 if stem == "imagenet" else 32
    encoder = dict(
        name="resnet",
        image_size=tuple(section.get("image_size") or (side, side)),
        channels=channels,
        block="bottleneck" if "encoder/layer1_0/conv3/kernel" in arrays else "basic",
        layers=tuple(
            read_shapes.count(arrays, f"encoder/layer{i}_%d/") for i in stages
        ),
        widths=tuple(widths),
        stem=stem,
        stem_width=arrays["encoder/conv1/kernel"].shape[-1],
        stem_init="kaiming",
        zero_init=False,
        **read_shapes.PLAIN,
    )
    norm = dict(read_shapes.NORM)
    model = {"precision": "float32", "norm": norm, "encoder": encoder}
    widths = [v.shape[1] for k, v in arrays.items() if re.match(r"proj.*/kernel", k)]
    if widths:  # MoCo's projection head
        model["projector"] = dict(
            widths=tuple(widths),
            hidden_norm=False,
            hidden_bias=True,
            last_bias=True,
            last_norm="none",
        )
    return read_shapes.with_heads(model, arrays)


def norm_refusal(weights: Weights) -> str | None:
    eps = weights.model["norm"]["eps"]
    return None if eps == 1e-5 else f"model.norm.eps={eps}, but torch's is 1e-5."


# --- the networks of installed packages ------------------------------------------


def timm_network(torch, model: Mapping, stem):
    from timm.models import resnet

    encoder = model["encoder"]
    if encoder["stem"] != "imagenet" or len(encoder["layers"]) != 4:
        raise NoSuchNetwork(f"timm's ResNet has no stem {encoder['stem']!r}")
    blocks = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    return resnet.ResNet(
        blocks[encoder["block"]],
        tuple(encoder["layers"]),
        num_classes=classes_of(model),
        in_chans=encoder["channels"],
        stem_width=encoder["stem_width"],
        channels=tuple(encoder["widths"]),
    )


def torchvision_network(torch, model: Mapping, stem):
    """torchvision's class, with its stem replaced where a paper does so."""
    from torchvision.models import resnet

    encoder, classes = model["encoder"], classes_of(model)
    widths = (encoder["stem_width"], *encoder["widths"])
    if widths != (64, 64, 128, 256, 512):
        raise NoSuchNetwork("torchvision's ResNet has widths of 64 to 512 only")
    blocks = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    net = resnet.ResNet(blocks[encoder["block"]], list(encoder["layers"]), classes or 1)
    side, stride, padding, pool = stem
    if (side, encoder["channels"]) != (7, 3):
        settings = {"stride": stride, "padding": padding, "bias": False}
        net.conv1 = torch.nn.Conv2d(encoder["channels"], 64, side, **settings)
    if not pool:
        net.maxpool = torch.nn.Identity()
    if not classes:
        net.fc = torch.nn.Identity()
    return net


def torchvision_outputs(net, images, model: Mapping) -> dict:
    # torchvision returns logits only; a hook catches the last map [B, D, h, w].
    caught = {}
    hook = net.layer4.register_forward_hook(lambda m, i, y: caught.update(map=y))
    logits = net(images)
    hook.remove()
    last = caught["map"]
    outputs = {"map": last.permute(0, 2, 3, 1), "features": last.mean((2, 3))}
    return outputs | ({"logits": logits} if "classifier" in model else {})


FAMILY = Family(
    rules={
        "timm": TORCHVISION,
        "torchvision": TORCHVISION,
        "detectron2": DETECTRON2,
    },
    dialects=(
        ("MoCo", MOCO),
        ("torchvision", TORCHVISION),
        ("detectron2", DETECTRON2),
    ),
    model_of=model_of,
    first_kernel="encoder/conv1/kernel",
    refusals=dict.fromkeys(("timm", "torchvision", "detectron2"), norm_refusal),
    batch_norm=True,
    stem=lambda encoder: STEMS[encoder["stem"]],
    torch={
        "timm": Library(timm_network, timm_outputs("map", channels_first=True)),
        "torchvision": Library(torchvision_network, torchvision_outputs),
    },
    timm_class="ResNet",
)
