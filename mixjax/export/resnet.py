"""Names of residual networks: torchvision's (timm's too), MoCo's and detectron2's.

detectron2's are what MoCo's public converter makes of torchvision's: what is in no
"layer" gets "stem.", layerN is res(N+1), bnK is convK.norm, and a shortcut's two parts
are shortcut and shortcut.norm. A classifier becomes stem.fc, which detectron2 ignores.
"""

import re

from mixjax.export.name_rules import BATCH_NORM, CONV, LINEAR, Rule, beneath

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
