"""Weights of other projects as ours: arrays by path, and the network they belong to.

What a file of ours says of itself is believed and checked; of any other, config.model
is read off the shapes. What shapes do not say (heads of a ViT, the size of a Swin's
pictures) comes from a config.json of Hugging Face beside the file, from `hints`, or
from the sizes that everybody uses, else it has to be named.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixjax.errors import UsageError
from mixjax.export import files, recognise
from mixjax.export import weights as store
from mixjax.export.name_rules import Arrays, place_of
from mixjax.export.weights import Weights, fixed_table

log = logging.getLogger("mixjax")
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of a ViT, by its width
DECODER_HEADS = {512: 16}
SIDES = {7: 224, 6: 192, 8: 256, 12: 384, 16: 256}  # of pictures, by a Swin's window
PLAIN_POOLS = ("class", "mean")  # no shape says which
HOW = {"remat": "none"}
NORM = dict(groups=1, interleaved=False, momentum=0.9, eps=1e-5, unbiased=True)


def read(path: Path, what: str, hints: Mapping) -> Weights:
    """The weights in a file, for the network that they fit.

    what: to call the file in messages, such as "--from=x.pth". hints: sections of
    config.model, "encoder" and "decoder", for what shapes do not say; also "image_size"
    of the pictures. UsageError if the file is refused, broken, not known or not whole.
    """
    named, notes = files.read(path, what)
    config = notes.get("config") or {}
    if notes.get("to") == "npz":
        arrays, model = named, config["model"]
    else:
        dialect, chosen = recognise.recognise(named, what)
        arrays = recognise.ours(chosen, dialect, what)
        own = hugging_face(path.parent / "config.json", dialect.encoder)
        both = {part: dict(hints.get(part, {})) | own.get(part, {}) for part in PARTS}
        guess = MODELS[dialect.encoder]
        try:
            model = config.get("model") or guess(arrays, patches(chosen, dialect), both)
        except KeyError as error:
            text = f"{what} is not whole: {error.args[0]} is missing."
            raise UsageError(text) from error
        config = config or {"method": own.get("method", {})}
        if dialect.encoder == "vit":
            arrays, model = without_tables(arrays, model, bool(notes))
    found = Weights(arrays, model, config, int(notes.get("step", 0)), "encoder")
    store.check(found, what)
    return found


PARTS = ("encoder", "decoder")


def patches(named: Arrays, dialect: recognise.Dialect) -> tuple[int, int]:
    """(side, channels) of the first convolution, which ours are flat."""
    for name, array in named.items():
        place = place_of(name, dialect.rules)
        if place and array.ndim == 4 and re.search("patch_embed|conv1/", place.path):
            if place.path.startswith(("encoder/patch_embed", "encoder/conv1")):
                return array.shape[2], array.shape[1]
    raise KeyError("the first convolution")


def hugging_face(path: Path, encoder: str) -> dict:
    """What a config.json of Hugging Face beside the file says; {} without one."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError):
        found = {}
    if "model_type" not in found or encoder not in ("vit", "swin"):
        return {}
    eps = found.get("layer_norm_eps", 1e-12 if encoder == "vit" else 1e-5)
    if eps != {"vit": 1e-6, "swin": 1e-5}[encoder]:
        log.info("%s has layer_norm_eps=%g, ours is another", path, eps)
    size = found.get("image_size", 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    hints: dict = {"encoder": {"image_size": size}, "decoder": {}}
    if encoder == "vit":
        hints["encoder"]["heads"] = found.get("num_attention_heads", 12)
        if "decoder_num_attention_heads" in found:
            hints["decoder"]["heads"] = found["decoder_num_attention_heads"]
        hints["method"] = {"norm_pix": bool(found.get("norm_pix_loss", False))}
        hints["method"]["mask_ratio"] = found.get("mask_ratio", 0.75)
    return hints


# --- config.model from shapes ----------------------------------------------------


def count(arrays: Arrays, template: str) -> int:
    """How many numbers n there are in paths "template" % n, which must be 0, 1, ..."""
    found = re.compile(template.replace("%d", r"(\d+)"))
    numbers = {int(m[1]) for m in map(found.match, arrays) if m}
    return len(numbers)


def ratio(fc1: np.ndarray) -> float:
    return fc1.shape[1] / fc1.shape[0]


def known(section: Mapping, field: str, part: str, usual) -> object:
    """A field that no shape says; UsageError if nobody does."""
    value = section.get(field) or usual
    if value is None:
        raise UsageError(
            f"the file does not say model.{part}.{field}; name it with "
            f"--config.model.{part}.{field}=N."
        )
    return value


def of_width(section: Mapping, width: int) -> Mapping:
    """The hints, if they are about a network as wide as this one."""
    return section if section.get("width", width) == width else {}


def square(cells: int, patch: int, hint) -> tuple[int, int]:
    """Height and width of pictures of `cells` patches: the hint, or both equal."""
    if hint and (hint[0] // patch) * (hint[1] // patch) == cells:
        return tuple(hint)
    side = math.isqrt(cells)
    if side * side != cells:
        raise UsageError(
            f"positions of {cells} patches are no square; name the size of the "
            f"pictures with --image_size=HxW."
        )
    return side * patch, side * patch


def vit(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    width = arrays["encoder/patch_embed/proj/bias"].shape[0]
    section = of_width(hints["encoder"], width)
    if "encoder/cls_token" not in arrays:
        raise UsageError(
            "the file's ViT has no class token, but every ViT here has one, which all "
            "patches see; such weights cannot be taken."
        )
    table = arrays["encoder/pos_embed"]
    cells = table.shape[1] - (math.isqrt(table.shape[1]) ** 2 != table.shape[1])
    hint = section.get("image_size")
    if hint and table.shape[1] - 1 == (hint[0] // first[0]) * (hint[1] // first[0]):
        cells = table.shape[1] - 1
    plain = section.get("pool") if section.get("pool") in PLAIN_POOLS else "class"
    pool = "mean_norm" if "encoder/fc_norm/scale" in arrays else plain
    encoder = dict(
        name="vit",
        image_size=square(cells, first[0], hint),
        channels=first[1],
        patch=first[0],
        width=width,
        depth=count(arrays, "encoder/blocks_%d/"),
        heads=known(section, "heads", "encoder", HEADS.get(width)),
        mlp_ratio=ratio(arrays["encoder/blocks_0/mlp/fc1/kernel"]),
        drop_path=0.0,
        position="learned",
        pool=pool,
        scan=False,
        **HOW,
    )
    model = {"precision": "float32", "encoder": encoder}
    if "decoder/embed/kernel" in arrays:
        width = arrays["decoder/embed/kernel"].shape[1]
        above = of_width(hints["decoder"], width)
        heads = known(above, "heads", "decoder", DECODER_HEADS.get(width))
        model["decoder"] = dict(
            width=width,
            depth=count(arrays, "decoder/blocks_%d/"),
            heads=heads,
            mlp_ratio=ratio(arrays["decoder/blocks_0/mlp/fc1/kernel"]),
            scan=False,
            **HOW,
        )
    return with_head(model, arrays)


def beit(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    section, shared = hints["encoder"], "encoder/relative_bias" in arrays
    name = "relative_bias" if shared else "blocks_0/attn/relative_bias"
    rows, heads = arrays[f"encoder/{name}"].shape
    hint = section.get("image_size")
    grid = [side // first[0] for side in hint] if hint else [0, 0]
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 != rows:
        side = (math.isqrt(rows - 3) + 1) // 2
        hint = square(side * side, first[0], None)
    plain = section.get("pool") if section.get("pool") in PLAIN_POOLS else "mean"
    pool = "mean_norm" if "encoder/fc_norm/scale" in arrays else plain
    encoder = dict(
        name="beit",
        image_size=tuple(hint),
        channels=first[1],
        patch=first[0],
        width=arrays["encoder/patch_embed/proj/bias"].shape[0],
        depth=count(arrays, "encoder/blocks_%d/"),
        heads=heads,
        mlp_ratio=ratio(arrays["encoder/blocks_0/mlp/fc1/kernel"]),
        layer_scale=section.get("layer_scale", 0.1),
        drop_path=0.0,
        mask_token="encoder/mask_token" in arrays,
        pool=pool,
        relative="shared" if shared else "each",
        scan=False,
        **HOW,
    )
    return with_head({"precision": "float32", "encoder": encoder}, arrays)


def swin(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    depths = range(count(arrays, "encoder/stage_%d/blocks"))
    table = "encoder/stage_{}/blocks_0/attn/relative_bias"
    tables = [arrays[table.format(i)].shape for i in depths]
    window = (math.isqrt(tables[0][0]) + 1) // 2
    side = SIDES.get(window)
    size = known(
        hints["encoder"], "image_size", "encoder", (side, side) if side else None
    )
    encoder = dict(
        name="swin",
        image_size=tuple(size),
        channels=first[1],
        patch=first[0],
        width=arrays["encoder/patch_norm/scale"].shape[0],
        depths=tuple(count(arrays, f"encoder/stage_{i}/blocks_%d/") for i in depths),
        heads=tuple(heads for _, heads in tables),
        window=window,
        mlp_ratio=ratio(arrays["encoder/stage_0/blocks_0/mlp/fc1/kernel"]),
        drop_path=0.0,
        mask_token="encoder/mask_token" in arrays,
        **HOW,
    )
    return with_head({"precision": "float32", "encoder": encoder}, arrays)


def resnet(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    section, stages = hints["encoder"], count(arrays, "encoder/layer%d_0/")
    numbers = range(1, stages + 1)
    widths = [arrays[f"encoder/layer{i}_0/conv1/kernel"].shape[-1] for i in numbers]
    stem = "imagenet" if first[0] == 7 else section.get("stem", "cifar")
    side = 224 if stem == "imagenet" else 32
    encoder = dict(
        name="resnet",
        image_size=tuple(section.get("image_size") or (side, side)),
        channels=first[1],
        block="bottleneck" if "encoder/layer1_0/conv3/kernel" in arrays else "basic",
        layers=tuple(count(arrays, f"encoder/layer{i}_%d/") for i in numbers),
        widths=tuple(widths),
        stem=stem,
        stem_width=arrays["encoder/conv1/kernel"].shape[-1],
        stem_init="kaiming",
        zero_init=False,
        **HOW,
    )
    model = {"precision": "float32", "norm": dict(NORM), "encoder": encoder}
    widths = [v.shape[1] for k, v in arrays.items() if re.match(r"proj.*/kernel", k)]
    if widths:
        model["projector"] = dict(
            widths=tuple(widths),
            hidden_norm=False,
            hidden_bias=True,
            last_bias=True,
            last_norm="none",
        )
    return with_head(model, arrays)


def with_head(model: dict, arrays: Arrays) -> dict:
    """The model with the sections of what else is in the file."""
    if "pixel_head/proj/kernel" in arrays:
        model["pixel_head"] = {}
    if "classifier/head/kernel" in arrays:
        probed = "classifier/norm/mean" in arrays
        classes = arrays["classifier/head/kernel"].shape[1]
        model["classifier"] = dict(classes=classes, init_std=0.01, feature_norm=probed)
        if probed and "norm" not in model:
            model["norm"] = {**NORM, "eps": 1e-6}
    return model


MODELS = {"vit": vit, "beit": beit, "swin": swin, "resnet": resnet}


# --- positions -------------------------------------------------------------------


def without_tables(arrays: Arrays, model: dict, known: bool) -> tuple[Arrays, dict]:
    """Fixed positions, which are no parameters here, taken out where they are fixed.

    known: the model says which are; else those that are as if computed. A table without
    a row for the class token gets one of zeros (timm's no_embed_class).
    """
    arrays, model = dict(arrays), dict(model)
    for part in filter(model.__contains__, PARTS):
        name, section = f"{part}/pos_embed", dict(model[part])
        table = arrays.get(name)
        fixed = fixed_table(model["encoder"], section["width"])
        if table is None:
            continue
        if table.shape[1:] == (fixed.shape[1] - 1, fixed.shape[2]):
            table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
            arrays[name] = table
        same = table.shape == fixed.shape and np.allclose(table, fixed, atol=1e-6)
        if same and not (known and section.get("position") == "learned"):
            del arrays[name]
            section["position"] = "sincos"
        else:
            section["position"] = "learned"
        model[part] = section
    return arrays, model
