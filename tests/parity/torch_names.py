"""The official names and layouts of masked autoencoders, as paths of our trees."""

import functools
import re

import numpy as np


def path_of(name: str) -> str:
    """ "blocks.0.attn.qkv.weight" -> "encoder/blocks_0/attn/qkv/kernel"."""
    if name.startswith(("projector.", "vnet.")):
        ours = {"vnet.": "variational.", "or.0": "or.fc1", "or.2": "or.fc2"}
        ours["projector."] = "token_projector."
        for old, new in ours.items():
            name = name.replace(old, new)
        return name.replace("weight", "kernel").replace(".", "/")
    decoder = name.startswith(("decoder_", "mask_token"))
    part = "classifier" if name.startswith("head.") else "encoder"
    part = "decoder" if decoder else part
    name = re.sub(r"blocks\.(\d+)", r"blocks_\1", name.removeprefix("decoder_"))
    norm = re.search(r"norm\d?\.weight$", name)
    name = name.replace(".weight", ".scale" if norm else ".kernel")
    return f"{part}/{name}".replace(".", "/")


def backbone_path(name: str, merge_first: bool = False) -> str:
    """A name of SimMIM's Swin or ViT, or of timm's Swin, as a path of our tree.

    "encoder.layers.0.blocks.1.attn.qkv.weight" -> "encoder/stage_0/blocks_1/attn/..";
    fine-tuning and timm have no "encoder.". merge_first: a merging belongs to the
    stage after it (timm), not to the one before.
    """
    name = name.removeprefix("encoder.").replace("head.fc.", "head.")
    part = "encoder"
    if name.startswith("head."):
        part = "classifier"
    if name.startswith("decoder.0."):
        part, name = "pixel_head", name.replace("decoder.0.", "proj.")

    def merge(found):
        return f"stage_{int(found[1]) - merge_first}.merge."

    name = re.sub(r"layers\.(\d+)\.downsample\.", merge, name)
    name = re.sub(r"layers\.(\d+)\.", r"stage_\1.", name)
    name = re.sub(r"blocks\.(\d+)\.", r"blocks_\1.", name)
    name = name.replace("patch_embed.norm", "patch_norm")
    name = name.replace("rel_pos_bias.", "")
    name = name.replace("relative_position_bias_table", "relative_bias")
    norm = re.search(r"norm\d?\.weight$", name)
    name = name.replace(".weight", ".scale" if norm else ".kernel")
    return f"{part}/{name}".replace(".", "/")


def layout_of(name: str, array: np.ndarray) -> np.ndarray:
    """Torch's layout -> ours: kernels (in, out), patches (row, column, channel)."""
    if name.endswith("relative_position_bias_table"):
        return array
    if array.ndim == 4:  # patch embedding: (out, channel, row, column)
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if array.ndim == 2 else array


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
