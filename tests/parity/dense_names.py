"""Torch's names and layouts of dense models, as paths of our trees."""

from mixjax.export.name_rules import (
    BATCH_NORM,
    BIAS,
    CONV,
    LINEAR,
    NORM,
    PATCHES,
    PLAIN,
    POINTS,
    Leaf,
    Rule,
    place_of,
)

# (in, out, row, column), not flipped
KERNEL = Leaf(
    "/kernel",
    ".weight",
    lambda x, _: x.transpose(2, 3, 0, 1),
    lambda x: x.transpose(2, 3, 0, 1),
)
DECONV = (KERNEL, BIAS)


def vitdet() -> tuple[Rule, ...]:
    """Hugging Face's VitDet, and detectron2's pyramid for a patch of 16."""
    ours, theirs = "encoder/blocks_{i}", "encoder.layer.{i}"
    rules = [
        Rule("encoder/pos_embed", "embeddings.position_embeddings", PLAIN),
        Rule("encoder/patch_embed/proj", "embeddings.projection", PATCHES),
    ]
    names = {"norm1": NORM, "norm2": NORM, "mlp/fc1": LINEAR, "mlp/fc2": LINEAR}
    names |= {"attn/qkv": LINEAR, "attn/proj": LINEAR}
    names |= {"attn/rel_pos_h": PLAIN, "attn/rel_pos_w": PLAIN}
    for name, kind in names.items():
        other = name.replace("attn", "attention").replace("/", ".")
        rules.append(Rule(f"{ours}/{name}", f"{theirs}.{other}", kind))
    start = "simple_pyramid/p2_"
    for name, place, kind in (
        ("up1", 0, DECONV),
        ("norm", 1, NORM),
        ("up2", 3, DECONV),
    ):
        rules.append(Rule(start + name, f"simfp_2.{place}", kind))
    rules.append(Rule("simple_pyramid/p3_up", "simfp_3.0", DECONV))
    for level, first in ((2, 4), (3, 1), (4, 0), (5, 1)):
        for i in (1, 2):
            ours, theirs = f"simple_pyramid/p{level}", f"simfp_{level}.{first + i - 1}"
            rules.append(Rule(f"{ours}/conv{i}", theirs, CONV))
            rules.append(Rule(f"{ours}/norm{i}", f"{theirs}.norm", NORM))
    return tuple(rules)


def upernet() -> tuple[Rule, ...]:
    """Hugging Face's heads, and mmsegmentation's neck."""
    units = {
        "uper_head/pool{i}/unit": "decode_head.psp_modules.{i}.1",
        "uper_head/top/unit": "decode_head.bottleneck",
        "uper_head/lateral{i}": "decode_head.lateral_convs.{i}",
        "uper_head/smooth{i}": "decode_head.fpn_convs.{i}",
        "uper_head/fuse/unit": "decode_head.fpn_bottleneck",
        "fcn_head/unit": "auxiliary_head.convs.0",
    }
    rules = [
        Rule("neck/p2_up1", "neck.upsample_4x.0", DECONV),
        Rule("neck/p2_norm", "neck.upsample_4x.1", BATCH_NORM),
        Rule("neck/p2_up2", "neck.upsample_4x.3", DECONV),
        Rule("neck/p3_up", "neck.upsample_2x.0", DECONV),
        Rule("uper_head/classes/proj", "decode_head.classifier", POINTS),
        Rule("fcn_head/classes/proj", "auxiliary_head.classifier", POINTS),
    ]
    for ours, theirs in units.items():
        rules.append(Rule(f"{ours}/conv", f"{theirs}.conv", CONV))
        rules.append(Rule(f"{ours}/bn", f"{theirs}.batch_norm", BATCH_NORM))
    return tuple(rules)


def trees(named: dict, rules: tuple[Rule, ...]) -> tuple[dict, dict]:
    """{torch's name: array} -> (params, stats) of a network."""
    params, stats = {}, {}
    for name, array in named.items():
        place = place_of(name, rules)
        part, *folders, leaf = place.path.split("/")
        here = params.setdefault(part, {})
        if leaf in ("mean", "var"):
            here = stats.setdefault(part, {}).setdefault("batch_stats", {})
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = place.load(array)
    return params, stats


def check_all(ref, key: str, params: dict, stats: dict, rules) -> None:
    """Every array of out/`key` against that of our trees."""
    expected = ref.part(f"out/{key}")
    assert expected
    for name, array in expected.items():
        place = place_of(name, rules)
        part, *words = place.path.split("/")
        statistic = words[-1] in ("mean", "var")
        found = stats[part]["batch_stats"] if statistic else params[part]
        for word in words:
            found = found[word]
        ref.check(f"{key}/{name}", found, place.load(array))


def as_torch(x):
    """[B, h, w, C] -> [B, C, h, w]."""
    return x.transpose(0, 3, 1, 2)
