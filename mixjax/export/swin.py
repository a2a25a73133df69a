"""Names of Swin transformers: timm's, Microsoft's and SimMIM's, Hugging Face's.

The three differ in where the merging of patches stands: the timm of today has it at
the start of stages 1 to 3, the others at the end of stages 0 to 2, as we have it.
"""

import math
from collections.abc import Mapping

from mixjax.export import read_shapes, vit
from mixjax.export.beit import PIXELS, TABLE
from mixjax.export.families import (
    Family,
    HuggingFace,
    Library,
    timm_outputs,
    timm_sizes,
)
from mixjax.export.name_rules import (
    LINEAR,
    NORM,
    PATCHES,
    PLAIN,
    WEIGHT,
    Arrays,
    Rule,
    beneath,
)
from mixjax.export.vit import block
from mixjax.export.weights import Weights
from mixjax.models import windows

SIDES = {7: 224, 6: 192, 8: 256, 12: 384, 16: 256}  # of images, by window
OURS, THEIRS = "encoder/stage_{i}/blocks_{j}", "layers.{i}.blocks.{j}"
COMMON = (
    Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
    Rule("encoder/patch_norm", "patch_embed.norm", NORM),
    *block(OURS, THEIRS),
    Rule(f"{OURS}/attn/relative_bias", f"{THEIRS}.attn.{TABLE}", PLAIN),
    Rule("encoder/norm", "norm", NORM),
    Rule("encoder/mask_token", "mask_token", PLAIN),
)


def merging(theirs: str) -> tuple[Rule, ...]:
    return (
        Rule("encoder/stage_{i}/merge/norm", f"{theirs}.norm", NORM),
        Rule("encoder/stage_{i}/merge/reduction", f"{theirs}.reduction", WEIGHT),
    )


TIMM_HEAD = (Rule("classifier/head", "head.fc", LINEAR),)
TIMM = (*COMMON, *merging("layers.{i+1}.downsample"), *TIMM_HEAD)
MICROSOFT = (
    *COMMON,
    *merging("layers.{i}.downsample"),
    Rule("classifier/head", "head", LINEAR),
)
SIMMIM = (*beneath("encoder.", MICROSOFT), *PIXELS)


# As in vit.py, and the table.
FILES = [f"attention.self.{x}" for x in ("query", "key", "value")]
FILES += vit.FILES[3:] + [f"attention.self.{TABLE}"]
MEMORY = vit.MEMORY + [f"attention.relative_position_bias.{TABLE}"]


def hf(words: list[str]) -> tuple[Rule, ...]:
    """Hugging Face's encoder alone."""
    *words, table = words
    projection, theirs = "embeddings.patch_embeddings.projection", f"encoder.{THEIRS}"
    return (
        Rule("encoder/patch_embed/proj", projection, PATCHES),
        Rule("encoder/patch_norm", "embeddings.norm", NORM),
        Rule("encoder/mask_token", "embeddings.mask_token", PLAIN),
        *vit.hf_block(OURS, theirs, words),
        Rule(f"{OURS}/attn/relative_bias", f"{theirs}.{table}", PLAIN),
        *merging("encoder.layers.{i}.downsample"),
        Rule("encoder/norm", "layernorm", NORM),
    )


def hf_whole(words: list[str]) -> tuple[Rule, ...]:
    """The encoder with SimMIM's layer or a classifier."""
    return (*beneath("swin.", hf(words)), *PIXELS, *vit.HF_HEAD)


HF, HF_MEMORY = hf(FILES), hf(MEMORY)
HF_WHOLE, HF_WHOLE_MEMORY = hf_whole(FILES), hf_whole(MEMORY)


# --- config.model from shapes ----------------------------------------------------


def model_of(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    patch, channels = first
    stages = range(read_shapes.count(arrays, "encoder/stage_%d/blocks"))
    table = "encoder/stage_{}/blocks_0/attn/relative_bias"
    tables = [arrays[table.format(i)].shape for i in stages]  # ((2w - 1)^2, heads)
    window = (math.isqrt(tables[0][0]) + 1) // 2
    side = SIDES.get(window)
    usual = (side, side) if side else None
    size = read_shapes.require(hints["encoder"], "image_size", "encoder", usual)
    depth = lambda i: read_shapes.count(arrays, f"encoder/stage_{i}/blocks_%d/")
    fc1 = arrays["encoder/stage_0/blocks_0/mlp/fc1/kernel"]
    encoder = dict(
        name="swin",
        image_size=tuple(size),
        channels=channels,
        patch=patch,
        width=arrays["encoder/patch_norm/scale"].shape[0],
        depths=tuple(map(depth, stages)),
        heads=tuple(heads for _, heads in tables),
        window=window,
        mlp_ratio=read_shapes.mlp_ratio(fc1),
        drop_path=0.0,
        mask_token="encoder/mask_token" in arrays,
        **read_shapes.PLAIN,
    )
    model = {"precision": "float32", "encoder": encoder}
    return read_shapes.with_heads(model, arrays)


# --- what does not go ------------------------------------------------------------


def stages(encoder: Mapping):
    """(size of the map in tokens, side of its windows) of every stage."""
    size = [side // encoder["patch"] for side in encoder["image_size"]]
    for i in range(len(encoder["depths"])):
        here = tuple(side // 2**i for side in size)
        yield here, windows.in_map(here, encoder["window"])[0]


def timm_refusal(weights: Weights) -> str | None:
    window = weights.model["encoder"]["window"]
    for size, side in stages(weights.model["encoder"]):
        if min(size) <= window and size[0] != size[1]:
            return (
                f"a map of {size} tokens has windows of {side} x {side} here, but "
                f"oblong or shifted ones in timm; use another --image_size, or --to=hf."
            )
    return None


def hf_refusal(weights: Weights) -> str | None:
    window = weights.model["encoder"]["window"]
    for size, side in stages(weights.model["encoder"]):
        if side < window:
            return (
                f"SwinModel has one size of windows, but a map of {size} tokens has "
                f"windows of {side} instead of {window}; --to=timm has both."
            )
    if "pixel_head" in weights.parts and "classifier" in weights.parts:
        return "no class has both a decoder and a classifier; use --head=no."
    return None


# --- the family ------------------------------------------------------------------


def hf_config(weights: Weights) -> dict:
    """The entries of config.json for Swin."""
    encoder = weights.model["encoder"]
    halvings = len(encoder["depths"]) - 1
    return {
        "model_type": "swin",
        "layer_norm_eps": 1e-5,
        "embed_dim": encoder["width"],
        "hidden_size": encoder["width"] * 2**halvings,
        "depths": list(encoder["depths"]),
        "num_heads": list(encoder["heads"]),
        "window_size": encoder["window"],
        "mlp_ratio": encoder["mlp_ratio"],
        "drop_path_rate": encoder["drop_path"],
        "use_absolute_embeddings": False,
        "encoder_stride": encoder["patch"] * 2**halvings,
    }


def special_rules(target: str, arrays: Arrays) -> tuple[Rule, ...] | None:
    if target == "hf" and all(path.startswith("encoder/") for path in arrays):
        return HF  # SwinModel has no prefix "swin."
    return None


def timm_network(torch, model: Mapping, stem):
    from timm.models.swin_transformer import SwinTransformer

    encoder = model["encoder"]
    return SwinTransformer(
        **timm_sizes(model),
        depths=tuple(encoder["depths"]),
        num_heads=tuple(encoder["heads"]),
        window_size=encoder["window"],
    )


FAMILY = Family(
    rules={"timm": TIMM, "hf": HF_WHOLE},
    dialects=(
        ("timm's Swin", TIMM),
        ("Microsoft's Swin", MICROSOFT),
        ("SimMIM's Swin", SIMMIM),
        ("Hugging Face's Swin", HF_WHOLE),
        ("Hugging Face's Swin", HF_WHOLE_MEMORY),
        ("Hugging Face's Swin", HF),
        ("Hugging Face's Swin", HF_MEMORY),
    ),
    model_of=model_of,
    first_kernel="encoder/patch_embed/proj/kernel",
    special_rules=special_rules,
    refusals={"timm": timm_refusal, "hf": hf_refusal},
    tolerance=5e-5,
    torch={"timm": Library(timm_network, timm_outputs("map"))},
    timm_class="SwinTransformer",
    hf=HuggingFace("Swin", hf_config, 1e-5, default_eps=1e-5),
)
