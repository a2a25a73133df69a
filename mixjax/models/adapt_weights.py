"""Adapts an encoder's weights to a network that differs a little from its own.

Fine-tuning changes some arrays (see the code of MAE and SimMIM): another image size
resizes the tables of positions; fixed sine-cosine positions become parameters; one
table of relative position biases for all blocks becomes one per block; the final norm
is replaced by a norm after the mean; the mask token is dropped. The transformer for
dense tasks (vit_dense.py) keeps the grid of positions of `pretrained_grid`, has no
final norm, and starts its own relative positions and layer scales from scratch.

All functions work on plain dicts {path inside the part: array} and change nothing that
they do not understand: the caller refuses arrays that still do not fit.
"""

import logging
import math
from collections.abc import Iterable, Mapping

import numpy as np

from mixjax.models import positions

log = logging.getLogger("mixjax")
Arrays = dict[str, np.ndarray]  # of one part, by path inside it
# Parameters of vit_dense that few pre-trained encoders have.
OPTIONAL = ("/rel_pos_h", "/rel_pos_w", "/relative_bias", "/gamma_1", "/gamma_2")


def adapt_part(
    part: str, arrays: Arrays, shapes: Mapping, old: Mapping, new: Mapping
) -> tuple[Arrays, set[str]]:
    """(arrays of `part` for the new network, names that start from scratch).

    old, new: config.model of the two networks. shapes: the new part's by path.
    """
    if part == "res5":
        # MoCo's detectors add a batch norm after res5 that no classifier has.
        return arrays, {k for k in shapes if is_extra_norm(k) and k not in arrays}
    if part != "encoder":
        return arrays, set()
    return adapt_encoder(arrays, shapes, old.get("encoder", {}), new["encoder"])


def adapt_encoder(
    arrays: Arrays, shapes: Mapping, old: Mapping, new: Mapping
) -> tuple[Arrays, set[str]]:
    """adapt_part for the encoder; old, new: config.model.encoder."""
    adapted = resize_positions(arrays, shapes, old, new)
    adapted = resize_relative_biases(adapted, shapes, old, new)
    fresh = {k for k in shapes if k.startswith("fc_norm/") and k not in adapted}
    # The norm after the mean takes the place of the final norm.
    replaced = ("norm/",) if fresh else ()
    if new.get("name") == "vit_dense":
        adapted = fuse_biases(adapted)
        fresh = {k for k in shapes if k.endswith(OPTIONAL) and k not in adapted}
        replaced = ("norm/", "fc_norm/", "cls_token")
    dropped = [k for k in adapted if k.startswith((*replaced, "mask_token"))]
    dropped = [k for k in dropped if k not in shapes]
    if dropped or fresh:
        log.info("init_from: dropped %s; new: %s", dropped, sorted(fresh))
    return {k: v for k, v in adapted.items() if k not in dropped}, fresh


def is_extra_norm(name: str) -> bool:
    """Whether a parameter or statistic belongs to the norm after the last block."""
    return name.removeprefix("batch_stats/").startswith("norm/")


# --- the fourth stage of a ResNet as a part of its own ----------------------------


def lacks_res5(old_parts: Iterable[str], new: Mapping) -> bool:
    """Whether res5 of the new network has to be cut off the old encoder.

    old_parts: names. new: config.model.
    """
    return "res5" in new and "res5" not in old_parts and "encoder" in old_parts


def cut_res5(
    arrays: dict[str, Arrays], old_parts: Iterable[str], new: Mapping
) -> dict[str, Arrays]:
    """{part: arrays} with the fourth stage moved from the encoder to res5.

    Only where the new network has a part res5 and the old one has none.
    """
    if not lacks_res5(old_parts, new):
        return arrays
    in_stage_4 = lambda name: name.removeprefix("batch_stats/").startswith("layer4_")
    encoder = arrays.get("encoder", {})
    return {
        **arrays,
        "encoder": {k: v for k, v in encoder.items() if not in_stage_4(k)},
        "res5": {k: v for k, v in encoder.items() if in_stage_4(k)},
    }


# --- positions ---------------------------------------------------------------------


def grid(encoder: Mapping) -> tuple[int, int]:
    """Rows and columns of tokens of a transformer's section."""
    height, width = encoder["image_size"]
    return height // encoder["patch"], width // encoder["patch"]


def table_grid(encoder: Mapping) -> tuple[int, int]:
    """Rows and columns of the table of positions, which vit_dense keeps small."""
    return tuple(encoder.get("pretrained_grid") or grid(encoder))


def resize_positions(
    arrays: Arrays, shapes: Mapping, old: Mapping, new: Mapping
) -> Arrays:
    """The arrays with `pos_embed` [1, 1 + L, D] for the new grid, if it has one."""
    name = "pos_embed"
    if name not in shapes:
        return arrays
    if name in arrays:
        table = arrays[name]
    elif old.get("position") == "sincos":  # computed, so no array was saved
        table = positions.sincos_2d(grid(old), old["width"], class_token=True)[None]
    elif old.get("name") == "beit" and new.get("name") == "vit_dense":
        # BEiT was trained with relative positions only: absolute ones start at zero.
        return {**arrays, name: np.zeros(shapes[name].shape, np.float32)}
    else:
        return arrays
    old_grid, new_grid = table_grid(old), table_grid(new)
    if old_grid != new_grid and table.shape[2:] == shapes[name].shape[2:]:
        log.info("init_from: positions of %s become %s", old_grid, new_grid)
        table = np.asarray(positions.resize(table[0], old_grid, new_grid))[None]
    return {**arrays, name: table}


def resize_relative_biases(
    arrays: Arrays, shapes: Mapping, old: Mapping, new: Mapping
) -> Arrays:
    """The arrays with every block's table of relative biases [rows, heads] resized."""
    shared, adapted = arrays.get("relative_bias"), dict(arrays)
    for name in shapes:
        if not name.endswith("relative_bias"):
            continue
        table = adapted.get(name, shared)
        if table is None or table.shape[1:] != shapes[name].shape[1:]:
            continue  # other heads: the caller refuses it
        if table.shape != shapes[name].shape:
            sides = window_sides(table, shapes[name], old, new)
            log.info("init_from: %s of %s tokens becomes one of %s", name, *sides)
            table = positions.resize_relative(table, *sides)
        adapted[name] = table
    if any(name.endswith("/relative_bias") for name in shapes):
        adapted.pop("relative_bias", None)  # each block has its own copy by now
    return adapted


def window_sides(table, shape, old: Mapping, new: Mapping):
    """((rows, columns) of the old, of the new) tokens that attend to each other."""
    if "window" not in old:
        return grid(old), grid(new)
    side = lambda t: (math.isqrt(t.shape[0]) + 1) // 2  # from (2 side - 1)^2 rows
    return (side(table),) * 2, (side(shape),) * 2


def fuse_biases(arrays: Arrays) -> Arrays:
    """BEiT's biases of queries and values as one of all three; keys have none."""
    fused = dict(arrays)
    for name in [k for k in arrays if k.endswith("attn/q_bias")]:
        block = name.removesuffix("q_bias")
        query, value = fused.pop(name), fused.pop(block + "v_bias")
        whole = np.concatenate([query, np.zeros_like(query), value])
        fused[block + "qkv/bias"] = whole  # [3 D]
    return fused
