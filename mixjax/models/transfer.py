"""An encoder's weights from one network to another that is not quite the same.

What fine-tuning changes (MAE's and SimMIM's code): another image size, so position
tables are resampled; fixed sine-cosine positions that become parameters; one relative
position bias shared by all blocks that becomes one for each; the final norm that gives
way to a norm after the mean; a mask token that nobody needs any more. Anything else
that does not fit is for the caller to refuse.
"""

import logging
import math
from collections.abc import Callable, Mapping

import numpy as np

from mixjax.models import positions

log = logging.getLogger("mixjax")
Arrays = dict[str, np.ndarray]  # of a part, by path inside it


def fitter(old: Mapping, new: Mapping) -> Callable:
    """(part, found, wanted) -> (what to take, names that start afresh).

    old, new: config.model of the two networks. found: arrays by path; wanted: shapes by
    path. Only the encoder is changed.
    """
    old, new = old.get("encoder", {}), new["encoder"]

    def fit(part: str, found: Arrays, wanted: Mapping) -> tuple[Arrays, set[str]]:
        if part != "encoder":
            return found, set()
        given = with_positions(found, wanted, old, new)
        given = with_relative_biases(given, wanted, old, new)
        fresh = {k for k in wanted if k.startswith("fc_norm/") and k not in given}
        unused = ("norm/",) if fresh else ()
        left = [k for k in given if k.startswith((*unused, "mask_token"))]
        left = [k for k in left if k not in wanted]
        if left or fresh:
            log.info("init_from: left behind %s; new: %s", left, sorted(fresh))
        return {k: v for k, v in given.items() if k not in left}, fresh

    return fit


def grid(encoder: Mapping) -> tuple[int, int]:
    """Rows and columns of tokens of a transformer's section."""
    height, width = encoder["image_size"]
    return height // encoder["patch"], width // encoder["patch"]


def with_positions(found: Arrays, wanted: Mapping, old: Mapping, new: Mapping):
    """The position table as a parameter of the new size, where one is wanted."""
    name = "pos_embed"
    if name not in wanted or (name not in found and old.get("position") != "sincos"):
        return found
    if name in found:
        table = found[name]
    else:
        table = positions.sincos_2d(grid(old), old["width"], class_token=True)[None]
    if table.shape != wanted[name].shape and table.shape[2:] == wanted[name].shape[2:]:
        log.info("init_from: positions of %s become %s", grid(old), grid(new))
        table = np.asarray(positions.resize(table[0], grid(old), grid(new)))[None]
    return {**found, name: table}


def with_relative_biases(found: Arrays, wanted: Mapping, old: Mapping, new: Mapping):
    """The tables of relative position biases of the new size, one for each block."""
    shared, given = found.get("relative_bias"), dict(found)
    for name in wanted:
        if not name.endswith("relative_bias"):
            continue
        table = given.get(name, shared)
        if table is None or table.shape[1:] != wanted[name].shape[1:]:
            continue  # for the caller to refuse
        if table.shape != wanted[name].shape:
            sizes = windows(table, wanted[name], old, new)
            log.info("init_from: %s of %s tokens becomes one of %s", name, *sizes)
            table = positions.resize_relative(table, *sizes)
        given[name] = table
    if "relative_bias" not in wanted:
        given.pop("relative_bias", None)
    return given


def windows(table, wanted, old: Mapping, new: Mapping):
    """((rows, columns) of the old, of the new): the tokens that tables are about."""
    if "window" not in old:
        return grid(old), grid(new)
    side = lambda t: (math.isqrt(t.shape[0]) + 1) // 2  # (2 side - 1)^2 rows
    return (side(table),) * 2, (side(wanted),) * 2
