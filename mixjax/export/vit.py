"""Names of vision transformers: MAE's and timm's, and Hugging Face's.

timm keeps the names of MAE's official code; its newer ViTs have no further parameters
that exist here. Hugging Face's are those of the files on its hub, which transformers 4
and 5 both read and write, whatever they call the layers in memory.
"""

import math
from collections.abc import Mapping

import numpy as np

from mixjax.errors import UsageError
from mixjax.export import read_shapes
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
    STATS,
    Arrays,
    Rule,
    beneath,
)
from mixjax.export.weights import Weights, fixed_table

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # usual ones, by width
DECODER_HEADS = {512: 16}


def block(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A pre-norm block with timm's names."""
    names = {"norm1": NORM, "norm2": NORM, "attn/qkv": LINEAR, "attn/proj": LINEAR}
    names |= {"mlp/fc1": LINEAR, "mlp/fc2": LINEAR}
    there = lambda name: f"{theirs}.{name.replace('/', '.')}"
    return tuple(Rule(f"{ours}/{n}", there(n), kind) for n, kind in names.items())


# What Hugging Face calls queries, keys, values, projection and the two layers of the
# MLP: in files, and in the memory of transformers 5.
FILES = [f"attention.attention.{x}" for x in ("query", "key", "value")]
FILES += ["attention.output.dense", "intermediate.dense", "output.dense"]
MEMORY = [f"attention.{x}_proj" for x in "qkvo"] + ["mlp.fc1", "mlp.fc2"]


def hf_block(ours: str, theirs: str, words: list[str]) -> tuple[Rule, ...]:
    """A block with Hugging Face's names: queries, keys and values apart."""
    *three, proj, fc1, fc2 = (f"{theirs}.{word}" for word in words)
    return (
        Rule(f"{ours}/norm1", f"{theirs}.layernorm_before", NORM),
        Rule(f"{ours}/norm2", f"{theirs}.layernorm_after", NORM),
        Rule(f"{ours}/attn/qkv", tuple(three), LINEAR),
        Rule(f"{ours}/attn/proj", proj, LINEAR),
        Rule(f"{ours}/mlp/fc1", fc1, LINEAR),
        Rule(f"{ours}/mlp/fc2", fc2, LINEAR),
    )


HEAD = (Rule("classifier/head", "head", LINEAR),)
# MAE's linear probe: a batch norm without scale and bias, then the layer.
PROBE = (
    Rule("classifier/norm", "head.0", STATS),
    Rule("classifier/head", "head.1", LINEAR),
)
ENDS = (
    Rule("encoder/norm", "norm", NORM),
    Rule("encoder/fc_norm", "fc_norm", NORM),
    Rule("encoder/patch_embed/proj", "patch_embed.proj", PATCHES),
    Rule("encoder/cls_token", "cls_token", PLAIN),
)
TIMM = (
    *ENDS,
    Rule("encoder/pos_embed", "pos_embed", PLAIN),
    *block("encoder/blocks_{i}", "blocks.{i}"),
)
DECODER = (
    Rule("decoder/pos_embed", "decoder_pos_embed", PLAIN),
    Rule("decoder/mask_token", "mask_token", PLAIN),
    Rule("decoder/embed", "decoder_embed", LINEAR),
    *block("decoder/blocks_{i}", "decoder_blocks.{i}"),
    Rule("decoder/norm", "decoder_norm", NORM),
    Rule("decoder/pred", "decoder_pred", LINEAR),
)
MAE = (*TIMM, *DECODER)


def hf(layers: str, words: list[str]) -> tuple[Rule, ...]:
    """Hugging Face's encoder alone; layers: what a block is called."""
    projection = "embeddings.patch_embeddings.projection"
    return (
        Rule("encoder/cls_token", "embeddings.cls_token", PLAIN),
        Rule("encoder/pos_embed", "embeddings.position_embeddings", PLAIN),
        Rule("encoder/patch_embed/proj", projection, PATCHES),
        *hf_block("encoder/blocks_{i}", layers, words),
        Rule("encoder/norm", "layernorm", NORM),
    )


def hf_whole(layers: str, above: str, words: list[str]) -> tuple[Rule, ...]:
    """The encoder with a decoder or a classifier; above: a block of the decoder."""
    decoder = (
        Rule("decoder/pos_embed", "decoder_pos_embed", PLAIN),
        Rule("decoder/mask_token", "mask_token", PLAIN),
        Rule("decoder/embed", "decoder_embed", LINEAR),
        *hf_block("decoder/blocks_{i}", above, words),
        Rule("decoder/norm", "decoder_norm", NORM),
        Rule("decoder/pred", "decoder_pred", LINEAR),
    )
    whole = (*beneath("vit.", hf(layers, words)), *beneath("decoder.", decoder))
    return (*whole, *HF_HEAD)


HF_HEAD = (Rule("classifier/head", "classifier", LINEAR),)
HF = hf("encoder.layer.{i}", FILES)
HF_WHOLE = hf_whole("encoder.layer.{i}", "decoder_layers.{i}", FILES)
HF_MEMORY = hf("layers.{i}", MEMORY)
HF_WHOLE_MEMORY = hf_whole("layers.{i}", "decoder_layers.{i}", MEMORY)
# What transformers 5.23 itself writes for ViTMAE.
HF_WHOLE_SLIP = hf_whole("encoder.layer.{i}", "decoder_encoder.layer.{i}", FILES)


# --- config.model from shapes ----------------------------------------------------


def model_of(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    patch, channels = first
    width = arrays["encoder/patch_embed/proj/bias"].shape[0]
    section = read_shapes.hints_for_width(hints["encoder"], width)
    if "encoder/cls_token" not in arrays:
        raise UsageError(
            "the file's ViT has no class token, but every ViT here has one, which all "
            "patches attend to; such weights cannot be used."
        )
    size = size_of(arrays["encoder/pos_embed"], patch, section.get("image_size"))
    encoder = dict(
        name="vit",
        image_size=size,
        channels=channels,
        patch=patch,
        width=width,
        depth=read_shapes.count(arrays, "encoder/blocks_%d/"),
        heads=read_shapes.require(section, "heads", "encoder", HEADS.get(width)),
        mlp_ratio=read_shapes.mlp_ratio(arrays["encoder/blocks_0/mlp/fc1/kernel"]),
        drop_path=0.0,
        position="learned",
        pool=read_shapes.pool_of(section, arrays, "class"),
        scan=False,
        **read_shapes.PLAIN,
    )
    model = {"precision": "float32", "encoder": encoder}
    if "decoder/embed/kernel" in arrays:
        model["decoder"] = decoder_of(arrays, hints["decoder"])
    return read_shapes.with_heads(model, arrays)


def size_of(table: np.ndarray, patch: int, hint) -> tuple[int, int]:
    """The image size that a table of positions [1, rows, D] is for.

    A square number of rows has none for the class token, unless the hint says that
    there is one.
    """
    rows = table.shape[1]
    patches = rows if math.isqrt(rows) ** 2 == rows else rows - 1
    if hint and rows - 1 == (hint[0] // patch) * (hint[1] // patch):
        patches = rows - 1
    return read_shapes.image_size(patches, patch, hint)


def decoder_of(arrays: Arrays, hints: Mapping) -> dict:
    """The section of MAE's decoder."""
    width = arrays["decoder/embed/kernel"].shape[1]
    section = read_shapes.hints_for_width(hints, width)
    usual = DECODER_HEADS.get(width)
    return dict(
        width=width,
        depth=read_shapes.count(arrays, "decoder/blocks_%d/"),
        heads=read_shapes.require(section, "heads", "decoder", usual),
        mlp_ratio=read_shapes.mlp_ratio(arrays["decoder/blocks_0/mlp/fc1/kernel"]),
        scan=False,
        **read_shapes.PLAIN,
    )


# --- positions that are computed here and stored there ---------------------------


def with_tables(arrays: Arrays, model: Mapping) -> Arrays:
    """The arrays with tables of fixed positions, which are no parameters here."""
    encoder, tables = model["encoder"], {}
    for part in filter(model.__contains__, ("encoder", "decoder")):
        if f"{part}/pos_embed" not in arrays:
            tables[f"{part}/pos_embed"] = fixed_table(encoder, model[part]["width"])
    return arrays | tables


def without_tables(arrays: Arrays, model: Mapping, known: bool) -> tuple[Arrays, dict]:
    """The arrays without tables of fixed positions, and the model that says so.

    known: whether the model tells which positions are fixed; otherwise those are that
    equal the computed ones. A table without a row for the class token gets a row of
    zeros (timm's no_embed_class).
    """
    arrays, model = dict(arrays), dict(model)
    for part in filter(model.__contains__, ("encoder", "decoder")):
        name, section = f"{part}/pos_embed", dict(model[part])
        table = arrays.get(name)
        if table is None:
            continue
        fixed = fixed_table(model["encoder"], section["width"])  # [1, 1 + L, D]
        if table.shape[1:] == (fixed.shape[1] - 1, fixed.shape[2]):
            table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
            arrays[name] = table
        equal = table.shape == fixed.shape and np.allclose(table, fixed, atol=1e-6)
        if equal and not (known and section.get("position") == "learned"):
            del arrays[name]
            section["position"] = "sincos"
        else:
            section["position"] = "learned"
        model[part] = section
    return arrays, model


# --- Hugging Face ----------------------------------------------------------------


def hf_config(weights: Weights) -> dict:
    """The entries of config.json for ViT and ViTMAE."""
    encoder = weights.model["encoder"]
    entries = {
        "model_type": "vit",
        "layer_norm_eps": 1e-6,
        "hidden_size": encoder["width"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["heads"],
        "intermediate_size": int(encoder["width"] * encoder["mlp_ratio"]),
        "encoder_stride": encoder["patch"],
    }
    if "decoder" in weights.parts:
        decoder, method = weights.model["decoder"], weights.config["method"]
        entries |= {
            "model_type": "vit_mae",
            "decoder_hidden_size": decoder["width"],
            "decoder_num_hidden_layers": decoder["depth"],
            "decoder_num_attention_heads": decoder["heads"],
            "decoder_intermediate_size": int(decoder["width"] * decoder["mlp_ratio"]),
            "mask_ratio": method.get("mask_ratio", 0.75),
            "norm_pix_loss": bool(method.get("norm_pix", False)),
        }
    return entries


def hf_hints(config: Mapping) -> dict:
    """What shapes do not tell but config.json does."""
    hints = {"encoder": {"heads": config.get("num_attention_heads", 12)}}
    if "decoder_num_attention_heads" in config:
        hints["decoder"] = {"heads": config["decoder_num_attention_heads"]}
    hints["method"] = {
        "norm_pix": bool(config.get("norm_pix_loss", False)),
        "mask_ratio": config.get("mask_ratio", 0.75),
    }
    return hints


def hf_refusal(weights: Weights) -> str | None:
    encoder = weights.model["encoder"]
    size = encoder["image_size"]
    if encoder["pool"] == "mean_norm":
        return "ViTModel has no norm after the mean (fc_norm); --to=timm has one."
    if "classifier" in weights.parts and encoder["pool"] != "class":
        return (
            f"ViTForImageClassification reads the class token, but "
            f"model.encoder.pool={encoder['pool']!r}; use --head=no or --to=timm."
        )
    if "decoder" in weights.parts and size[0] != size[1]:
        return f"ViTMAEForPreTraining takes square images only, not {tuple(size)}."
    if "decoder" in weights.parts and "classifier" in weights.parts:
        return "no class has both a decoder and a classifier; use --head=no."
    return None


# --- the family ------------------------------------------------------------------


def special_rules(target: str, arrays: Arrays) -> tuple[Rule, ...] | None:
    if target == "hf" and all(path.startswith("encoder/") for path in arrays):
        return HF  # ViTModel has no prefix "vit."
    if target == "mae" and "classifier/norm/mean" in arrays:
        return (*MAE, *PROBE)
    return None


def timm_network(torch, model: Mapping, stem):
    from timm.models.vision_transformer import VisionTransformer

    encoder = model["encoder"]
    pool = {"class": "token", "mean": "avg", "mean_norm": "avg"}[encoder["pool"]]
    return VisionTransformer(
        **timm_sizes(model),
        depth=encoder["depth"],
        num_heads=encoder["heads"],
        global_pool=pool,
        fc_norm=encoder["pool"] == "mean_norm",
    )


FAMILY = Family(
    rules={"timm": (*TIMM, *HEAD), "hf": HF_WHOLE, "mae": (*MAE, *HEAD)},
    dialects=(
        ("timm or MAE", (*MAE, *HEAD, *PROBE)),
        ("Hugging Face's ViT", HF_WHOLE),
        ("Hugging Face's ViT", HF_WHOLE_MEMORY),
        ("Hugging Face's ViT", HF_WHOLE_SLIP),
        ("Hugging Face's ViT", HF),
        ("Hugging Face's ViT", HF_MEMORY),
    ),
    model_of=model_of,
    first_kernel="encoder/patch_embed/proj/kernel",
    special_rules=special_rules,
    refusals={"hf": hf_refusal},
    to_file=with_tables,
    from_file=without_tables,
    torch={"timm": Library(timm_network, timm_outputs("tokens"))},
    timm_class="VisionTransformer",
    hf=HuggingFace("ViT", hf_config, 1e-6, default_eps=1e-12, hints=hf_hints),
)
