"""Small torch networks under public names, for what no installed package has.

Each encoder of mixjax/models that is exported has a file here with its name. Its
build(target, model, stem) is what the export's --check asks for: a module with the
names of the target (timm, torchvision, MAE's official code or detectron2), and with a
method `outputs`, {name: tensor} of images [B, C, H, W]. The networks are written from
the papers and from lists of names.
"""

import importlib

from torch import nn


def build(target: str, model: dict, stem: list | None) -> nn.Module:
    """The network of config.model `model` with the names of `target`.

    stem: of a residual network: side, stride, padding, pool.
    """
    file = importlib.import_module(f"{__name__}.{model['encoder']['name']}")
    return file.build(target, model, stem)
