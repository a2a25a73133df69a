"""The official names and layouts of masked autoencoders, as paths of our trees.

Those of mixjax.export, and the names that only files of reference numbers have.
"""

import functools

import numpy as np

from mixjax.export import beit, swin, vit
from mixjax.export.name_rules import LINEAR, Rule, place_of

MAE = (
    *vit.MAE,
    *vit.HEAD,
    Rule("token_projector/fc1", "projector.0", LINEAR),
    Rule("token_projector/fc2", "projector.2", LINEAR),
    Rule("variational/mu/fc{i}", "vnet.mu.fc{i}", LINEAR),
    Rule("variational/var/fc{i}", "vnet.var.fc{i}", LINEAR),
)
BACKBONES = (*beit.BEIT, *beit.PIXELS, *swin.COMMON, *vit.HEAD, *swin.TIMM_HEAD)
MERGINGS = {True: "layers.{i+1}.downsample", False: "layers.{i}.downsample"}


def path_of(name: str) -> str:
    """ "blocks.0.attn.qkv.weight" -> "encoder/blocks_0/attn/qkv/kernel"."""
    return place_of(name, MAE).path


def backbone_path(name: str, merge_first: bool = False) -> str:
    """A name of SimMIM's Swin or ViT, or of timm's Swin, as a path of our tree.

    "encoder.layers.0.blocks.1.attn.qkv.weight" -> "encoder/stage_0/blocks_1/attn/..";
    fine-tuning and timm have no "encoder.". merge_first: a merging belongs to the
    stage after it (timm), not to the one before.
    """
    rules = (*BACKBONES, *swin.merging(MERGINGS[merge_first]))
    return place_of(name.removeprefix("encoder."), rules).path


def layout_of(name: str, array: np.ndarray) -> np.ndarray:
    """Torch's layout -> ours: kernels (in, out), patches (row, column, channel)."""
    name = name.removeprefix("encoder.")
    rules = (*MAE, *BACKBONES, *swin.merging("layers.{i}.downsample"))
    return place_of(name, rules).load(array)


def to_tree(named: dict, path=path_of) -> dict:
    """{official name: array} -> nested dict of our parameters.

    path: official name -> our path.
    """
    tree: dict = {}
    for name, array in named.items():
        *folders, leaf = path(name).split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = layout_of(name, array)
    return tree


def swin_tree(named: dict, merge_first: bool = False) -> dict:
    """to_tree for a Swin and what is on it; merge_first: see backbone_path."""
    return to_tree(named, functools.partial(backbone_path, merge_first=merge_first))


def at(tree: dict, name: str, path=path_of):
    """Our array for an official name; path: as in to_tree."""
    for word in path(name).split("/"):
        tree = tree[word]
    return tree


def images(array: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]."""
    return array.transpose(0, 2, 3, 1)
