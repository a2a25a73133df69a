"""The official names and layouts of masked autoencoders, as paths of our trees."""

import re

import numpy as np


def path_of(name: str) -> str:
    """ "blocks.0.attn.qkv.weight" -> "encoder/blocks_0/attn/qkv/kernel"."""
    decoder = name.startswith(("decoder_", "mask_token"))
    part = "classifier" if name.startswith("head.") else "encoder"
    part = "decoder" if decoder else part
    name = re.sub(r"blocks\.(\d+)", r"blocks_\1", name.removeprefix("decoder_"))
    norm = re.search(r"norm\d?\.weight$", name)
    name = name.replace(".weight", ".scale" if norm else ".kernel")
    return f"{part}/{name}".replace(".", "/")


def layout_of(name: str, array: np.ndarray) -> np.ndarray:
    """Torch's layout -> ours: kernels (in, out), patches (row, column, channel)."""
    if array.ndim == 4:  # patch embedding: (out, channel, row, column)
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if array.ndim == 2 else array


def to_tree(named: dict) -> dict:
    """{official name: array} -> nested dict of our parameters."""
    tree: dict = {}
    for name, array in named.items():
        *folders, leaf = path_of(name).split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = layout_of(name, array)
    return tree


def at(tree: dict, name: str):
    """Our array for an official name."""
    for word in path_of(name).split("/"):
        tree = tree[word]
    return tree


def images(array: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]."""
    return array.transpose(0, 2, 3, 1)
