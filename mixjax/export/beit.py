"""BEiT's form of the vision transformer: names of timm, and of SimMIM's ViT.

The two share names, but SimMIM's begin with "encoder.". Queries and values have biases
of their own, keys have none, and positions are relative.
"""

import math
from collections.abc import Mapping

from mixjax.export import read_shapes, vit
from mixjax.export.families import Family, Library, timm_outputs, timm_sizes
from mixjax.export.name_rules import PLAIN, POINTS, WEIGHT, Arrays, Rule, beneath

TABLE = "relative_position_bias_table"
OURS, THEIRS = "encoder/blocks_{i}", "blocks.{i}"
BEIT = (
    *vit.ENDS,
    Rule("encoder/mask_token", "mask_token", PLAIN),
    Rule("encoder/relative_bias", f"rel_pos_bias.{TABLE}", PLAIN),
    Rule(f"{OURS}/attn/qkv", f"{THEIRS}.attn.qkv", WEIGHT),
    Rule(f"{OURS}/attn/q_bias", f"{THEIRS}.attn.q_bias", PLAIN),
    Rule(f"{OURS}/attn/v_bias", f"{THEIRS}.attn.v_bias", PLAIN),
    Rule(f"{OURS}/attn/relative_bias", f"{THEIRS}.attn.{TABLE}", PLAIN),
    Rule(f"{OURS}/gamma_1", f"{THEIRS}.gamma_1", PLAIN),
    Rule(f"{OURS}/gamma_2", f"{THEIRS}.gamma_2", PLAIN),
    *(rule for rule in vit.block(OURS, THEIRS) if not rule.ours.endswith("qkv")),
)
TIMM = (*BEIT, *vit.HEAD)
PIXELS = (Rule("pixel_head/proj", "decoder.0", POINTS),)  # SimMIM's decoder
SIMMIM = (*beneath("encoder.", BEIT), *PIXELS)


def model_of(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    patch, channels = first
    section, shared = hints["encoder"], "encoder/relative_bias" in arrays
    name = "relative_bias" if shared else "blocks_0/attn/relative_bias"
    rows, heads = arrays[f"encoder/{name}"].shape
    encoder = dict(
        name="beit",
        image_size=size_of(rows, patch, section.get("image_size")),
        channels=channels,
        patch=patch,
        width=arrays["encoder/patch_embed/proj/bias"].shape[0],
        depth=read_shapes.count(arrays, "encoder/blocks_%d/"),
        heads=heads,
        mlp_ratio=read_shapes.mlp_ratio(arrays["encoder/blocks_0/mlp/fc1/kernel"]),
        layer_scale=section.get("layer_scale", 0.1),
        drop_path=0.0,
        mask_token="encoder/mask_token" in arrays,
        pool=read_shapes.pool_of(section, arrays, "mean"),
        relative="shared" if shared else "each",
        scan=False,
        **read_shapes.PLAIN,
    )
    model = {"precision": "float32", "encoder": encoder}
    return read_shapes.with_heads(model, arrays)


def size_of(rows: int, patch: int, hint) -> tuple[int, int]:
    """The image size of a table of relative positions: the hint if it fits, or square.

    A grid of h x w tokens has (2h - 1)(2w - 1) offsets and 3 rows for the class token.
    """
    if hint:
        height, width = (side // patch for side in hint)
        if (2 * height - 1) * (2 * width - 1) + 3 == rows:
            return tuple(hint)
    side = (math.isqrt(rows - 3) + 1) // 2
    return read_shapes.image_size(side * side, patch, None)


def timm_network(torch, model: Mapping, stem):
    from timm.models.beit import Beit

    encoder = model["encoder"]
    return Beit(
        **timm_sizes(model),
        depth=encoder["depth"],
        num_heads=encoder["heads"],
        global_pool="token" if encoder["pool"] == "class" else "avg",
        use_fc_norm=encoder["pool"] == "mean_norm",
        init_values=encoder["layer_scale"],
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=encoder["relative"] == "shared",
        use_rel_pos_bias=encoder["relative"] == "each",
    )


FAMILY = Family(
    rules={"timm": TIMM},
    dialects=(("timm's BEiT", TIMM), ("SimMIM's ViT", SIMMIM)),
    model_of=model_of,
    first_kernel="encoder/patch_embed/proj/kernel",
    torch={"timm": Library(timm_network, timm_outputs("tokens"))},
    timm_class="Beit",
)
