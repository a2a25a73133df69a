"""Helpers that read config.model off the arrays of a file, for each family's model_of.

Arrays are {our path: array}. What no shape tells comes from `hints`, sections of
config.model; `require` refuses a file where nothing tells.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from mixjax.errors import UsageError
from mixjax.export.name_rules import Arrays

POOLS = ("class", "mean")  # they have the same arrays, so no shape tells them apart
# Fields that do not change what is computed, as a new recipe would have them.
PLAIN = {"remat": "none"}
NORM = dict(groups=1, interleaved=False, momentum=0.9, eps=1e-5, unbiased=True)


def count(arrays: Arrays, template: str) -> int:
    """The number of different n in paths that begin with `template` % n."""
    pattern = re.compile(template.replace("%d", r"(\d+)"))
    return len({int(match[1]) for match in map(pattern.match, arrays) if match})


def mlp_ratio(fc1: np.ndarray) -> float:
    """Hidden width by width of an MLP; fc1: its first kernel [D, hidden]."""
    return fc1.shape[1] / fc1.shape[0]


def require(section: Mapping, field: str, part: str, usual) -> object:
    """The hint for a field that no shape tells, or `usual`; UsageError if None."""
    value = section.get(field) or usual
    if value is None:
        raise UsageError(
            f"the file does not say model.{part}.{field}; give it with "
            f"--config.model.{part}.{field}=N."
        )
    return value


def hints_for_width(section: Mapping, width: int) -> Mapping:
    """The hints, or {} if they are about a network of another width."""
    return section if section.get("width", width) == width else {}


def pool_of(section: Mapping, arrays: Arrays, usual: str) -> str:
    """model.encoder.pool: mean_norm if its norm is there, else the hint or `usual`."""
    if "encoder/fc_norm/scale" in arrays:
        return "mean_norm"
    return section.get("pool") if section.get("pool") in POOLS else usual


def image_size(patches: int, patch: int, hint) -> tuple[int, int]:
    """Height and width of images of so many patches: the hint if it fits, or a square.

    patch: side of a patch in pixels.
    """
    if hint and (hint[0] // patch) * (hint[1] // patch) == patches:
        return tuple(hint)
    side = math.isqrt(patches)
    if side * side != patches:
        raise UsageError(
            f"the file has positions of {patches} patches, which do not form a square; "
            f"give the size of the images with --image_size=HxW."
        )
    return side * patch, side * patch


def with_heads(model: dict, arrays: Arrays) -> dict:
    """`model` with sections for the pixel head and classifier of the file, if any."""
    if "pixel_head/proj/kernel" in arrays:
        model["pixel_head"] = {}
    if "classifier/head/kernel" in arrays:
        # MAE's linear probe has a batch norm before its layer.
        probed = "classifier/norm/mean" in arrays
        classes = arrays["classifier/head/kernel"].shape[1]
        model["classifier"] = dict(classes=classes, init_std=0.01, feature_norm=probed)
        if probed and "norm" not in model:
            model["norm"] = {**NORM, "eps": 1e-6}
    return model
