"""Names of vision transformers: MAE's and timm's, Hugging Face's, and BEiT's.

timm keeps the names of MAE's official code; its newer ViTs differ in nothing that we
have. SimMIM's ViT and timm's BEiT share names too, but that SimMIM's are beneath
"encoder.". Hugging Face's are those of the files on its hub, which transformers 4 and
5 read and write whatever they call the layers inside.
"""

from mixjax.export.name_rules import (
    LINEAR,
    NORM,
    PATCHES,
    PLAIN,
    POINTS,
    STATS,
    WEIGHT,
    Rule,
    beneath,
)


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

TABLE = "relative_position_bias_table"
BEIT = (
    *ENDS,
    Rule("encoder/mask_token", "mask_token", PLAIN),
    Rule("encoder/relative_bias", f"rel_pos_bias.{TABLE}", PLAIN),
    Rule("encoder/blocks_{i}/attn/qkv", "blocks.{i}.attn.qkv", WEIGHT),
    Rule("encoder/blocks_{i}/attn/q_bias", "blocks.{i}.attn.q_bias", PLAIN),
    Rule("encoder/blocks_{i}/attn/v_bias", "blocks.{i}.attn.v_bias", PLAIN),
    Rule("encoder/blocks_{i}/attn/relative_bias", "blocks.{i}.attn." + TABLE, PLAIN),
    Rule("encoder/blocks_{i}/gamma_1", "blocks.{i}.gamma_1", PLAIN),
    Rule("encoder/blocks_{i}/gamma_2", "blocks.{i}.gamma_2", PLAIN),
    *(
        rule
        for rule in block("encoder/blocks_{i}", "blocks.{i}")
        if not rule.ours.endswith("qkv")
    ),
)
PIXELS = (Rule("pixel_head/proj", "decoder.0", POINTS),)
SIMMIM = (*beneath("encoder.", BEIT), *PIXELS)
