"""An encoder's weights from one network to another that is not quite the same.

What fine-tuning changes (MAE's and SimMIM's code): another image size, so position
tables are resampled; fixed sine-cosine positions that become parameters; one relative
position bias shared by all blocks that becomes one for each; the final norm that gives
way to a norm after the mean; a mask token that nobody needs any more. A transformer for
dense tasks (vit_dense.py) takes the table of the grid that it says, no final norm, and
relative positions and scales of its own that start afresh. Anything else that does not
fit is for the caller to refuse.
"""

import logging
import math
from collections.abc import Callable, Mapping

import numpy as np

from mixjax.models import positions

log = logging.getLogger("mixjax")
Arrays = dict[str, np.ndarray]  # of a part, by path inside it
AFRESH = ("/rel_pos_h", "/rel_pos_w", "/relative_bias", "/gamma_1", "/gamma_2")


def fitter(old: Mapping, new: Mapping) -> Callable:
    """(part, found, wanted) -> (what to take, names that start afresh).

    old, new: config.model of the two networks. found: arrays by path; wanted: shapes by
    path. Only the encoder is changed.
    """
    old, new = old.get("encoder", {}), new["encoder"]

    def fit(part: str, found: Arrays, wanted: Mapping) -> tuple[Arrays, set[str]]:
        if part == "res5":
            return found, {k for k in wanted if is_extra(k) and k not in found}
        if part != "encoder":
            return found, set()
        given = with_positions(found, wanted, old, new)
        given = with_relative_biases(given, wanted, old, new)
        fresh = {k for k in wanted if k.startswith("fc_norm/") and k not in given}
        unused = ("norm/",) if fresh else ()
        if new.get("name") == "vit_dense":
            given = with_full_biases(given)
            fresh = {k for k in wanted if k.endswith(AFRESH) and k not in given}
            unused = ("norm/", "fc_norm/", "cls_token")
        left = [k for k in given if k.startswith((*unused, "mask_token"))]
        left = [k for k in left if k not in wanted]
        if left or fresh:
            log.info("init_from: left behind %s; new: %s", left, sorted(fresh))
        return {k: v for k, v in given.items() if k not in left}, fresh

    return fit


def is_extra(name: str) -> bool:
    """Whether a parameter or statistic is one of the norm behind the last block."""
    return name.removeprefix("batch_stats/").startswith("norm/")


def cutter(new: Mapping) -> Callable:
    """(parts, arrays) of an old network -> the same, cut as the new network is.

    new: its config.model. parts: names. arrays: (kind, part) -> {path: array}, kind
    "params" or "stats". Where the new network has a part res5 and the old one has not,
    the fourth stage of the old encoder is that part, and the encoder ends before it.
    """

    def cut(parts: list[str], arrays: Callable) -> tuple[list[str], Callable]:
        if "res5" not in new or "res5" in parts or "encoder" not in parts:
            return parts, arrays
        is_last = lambda name: name.removeprefix("batch_stats/").startswith("layer4_")

        def taken(kind, part):
            if part not in ("encoder", "res5"):
                return arrays(kind, part)
            found, last = arrays(kind, "encoder"), part == "res5"
            return {k: v for k, v in found.items() if is_last(k) == last}

        return [*parts, "res5"], taken

    return cut


def grid(encoder: Mapping) -> tuple[int, int]:
    """Rows and columns of tokens of a transformer's section."""
    height, width = encoder["image_size"]
    return height // encoder["patch"], width // encoder["patch"]


def table_grid(encoder: Mapping) -> tuple[int, int]:
    """Rows and columns that the table of positions is for."""
    return tuple(encoder.get("pretrained_grid") or grid(encoder))


def with_positions(found: Arrays, wanted: Mapping, old: Mapping, new: Mapping):
    """The position table as a parameter of the new size, where one is wanted."""
    name = "pos_embed"
    if name not in wanted:
        return found
    if name in found:
        table = found[name]
    elif old.get("position") == "sincos":
        table = positions.sincos_2d(grid(old), old["width"], class_token=True)[None]
    elif old.get("name") == "beit" and new.get("name") == "vit_dense":
        # Its blocks have seen relative positions alone.
        return {**found, name: np.zeros(wanted[name].shape, np.float32)}
    else:
        return found
    sizes = table_grid(old), table_grid(new)
    if sizes[0] != sizes[1] and table.shape[2:] == wanted[name].shape[2:]:
        log.info("init_from: positions of %s become %s", *sizes)
        table = np.asarray(positions.resize(table[0], *sizes))[None]
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
    if any(name.endswith("/relative_bias") for name in wanted):
        given.pop("relative_bias", None)
    return given


def with_full_biases(found: Arrays) -> Arrays:
    """Biases of queries and values as one of all three, where keys had none."""
    given = dict(found)
    for name in [k for k in found if k.endswith("attn/q_bias")]:
        block = name.removesuffix("q_bias")
        parts = given.pop(name), given.pop(block + "v_bias")
        whole = np.concatenate([parts[0], np.zeros_like(parts[0]), parts[1]])
        given[block + "qkv/bias"] = whole  # [3 D]
    return given


def windows(table, wanted, old: Mapping, new: Mapping):
    """((rows, columns) of the old, of the new): the tokens that tables are about."""
    if "window" not in old:
        return grid(old), grid(new)
    side = lambda t: (math.isqrt(t.shape[0]) + 1) // 2  # (2 side - 1)^2 rows
    return (side(table),) * 2, (side(wanted),) * 2
