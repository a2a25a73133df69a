"""Torch's names and layouts of residual networks, as paths of our trees."""

import re

import numpy as np

from mixjax.export.name_rules import place_of
from mixjax.export.resnet import TORCHVISION


def path_of(name: str) -> str:
    """ "layer1.0.downsample.1.weight" -> "encoder/layer1_0/downsample_bn/scale".

    Of a statistic, the path inside the collection batch_stats of its part.
    """
    return place_of(name, TORCHVISION).path


def to_ours(name: str, array: np.ndarray) -> np.ndarray:
    """Torch's layout -> ours: kernels (row, column, in, out) or (in, out)."""
    return place_of(name, TORCHVISION).load(array)


def trees(named: dict) -> tuple[dict, dict]:
    """{torch's name: array} -> (params, stats) of a network."""
    params, stats = {}, {}
    for name, array in named.items():
        part, *folders, leaf = path_of(name).split("/")
        here = params.setdefault(part, {})
        if leaf in ("mean", "var"):
            here = stats.setdefault(part, {}).setdefault("batch_stats", {})
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = to_ours(name, array)
    return params, stats


def at(params: dict, stats: dict, name: str):
    """Our array for torch's name."""
    part, *words = path_of(name).split("/")
    statistic = words[-1] in ("mean", "var")
    tree = stats[part]["batch_stats"] if statistic else params[part]
    for word in words:
        tree = tree[word]
    return tree


def drawn(ref) -> dict:
    """Weights of a file that only says how they are drawn, by hp/weight_recipe."""
    rng = np.random.Generator(np.random.PCG64(ref["hp/weight_seed"]))
    named = {}
    for name, text in zip(ref["hp/param_names"], ref["hp/param_shapes"], strict=True):
        shape = tuple(int(n) for n in text.split("x"))
        u = rng.random(shape)
        if len(shape) == 4:
            u = (2 * u - 1) * np.sqrt(6 / np.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            u = 0.5 + u
        else:
            u = 0.4 * u - 0.2
        named[str(name)] = u.astype(np.float32)
    sums = [v.sum(dtype=np.float64) for v in named.values()]
    np.testing.assert_allclose(sums, ref["hp/param_sum"], rtol=1e-12, atol=1e-9)
    first = [v.flat[0] for v in named.values()]
    np.testing.assert_array_equal(first, ref["hp/param_first"])
    return named


def weights(ref) -> dict:
    """All weights and statistics of a file, by torch's names."""
    return ref.part("params") or drawn(ref)


def encoder(named: dict, images: np.ndarray, **changes) -> dict:
    """The section of config.model for these weights and images [B, C, H, W]."""
    firsts = sorted(n for n in named if re.match(r"layer\d+\.0\.conv1\.weight", n))
    blocks = {re.match(r"layer\d+\.\d+", n)[0] for n in named if n[:5] == "layer"}
    stages = [n.split(".")[0] for n in firsts]
    stem = named["conv1.weight"]
    return {
        "name": "resnet",
        "image_size": images.shape[2:],
        "channels": images.shape[1],
        "block": "bottleneck" if "layer1.0.conv3.weight" in named else "basic",
        "layers": tuple(sum(b.split(".")[0] == s for b in blocks) for s in stages),
        "widths": tuple(named[n].shape[0] for n in firsts),
        "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
        "stem_width": stem.shape[0],
        "stem_init": "kaiming",
        "zero_init": False,
        "remat": "none",
        **changes,
    }
