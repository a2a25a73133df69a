"""Names of Swin transformers: timm's, Microsoft's and SimMIM's, Hugging Face's.

The three differ in where the merging of patches stands: the timm of today has it at
the start of stages 1 to 3, the others at the end of stages 0 to 2, as we have it.
"""

from mixjax.export import vit
from mixjax.export.name_rules import LINEAR, NORM, PATCHES, PLAIN, WEIGHT, Rule, beneath
from mixjax.export.vit import PIXELS, TABLE, block

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
    return (*beneath("swin.", hf(words)), *vit.PIXELS, *vit.HF_HEAD)


HF, HF_MEMORY = hf(FILES), hf(MEMORY)
HF_WHOLE, HF_WHOLE_MEMORY = hf_whole(FILES), hf_whole(MEMORY)
