"""Names of ConvNeXt: timm's.

timm has the transition between stages at the start of stages 1 to 3; ours belongs to
the end of the stage before. The final norm is part of timm's head.
"""

from collections.abc import Mapping

from mixjax.export import read_shapes
from mixjax.export.families import Family, Library, classes_of, timm_outputs
from mixjax.export.name_rules import BIAS, CONV, LINEAR, NORM, PLAIN, Arrays, Rule

OURS, THEIRS = "encoder/stage_{i}/blocks_{j}", "stages.{i}.blocks.{j}"
BIASED_CONV = (*CONV, BIAS)
TIMM = (
    Rule("encoder/patch_conv", "stem.0", BIASED_CONV),
    Rule("encoder/patch_norm", "stem.1", NORM),
    Rule(f"{OURS}/conv_dw", f"{THEIRS}.conv_dw", BIASED_CONV),
    Rule(f"{OURS}/norm", f"{THEIRS}.norm", NORM),
    Rule(f"{OURS}/fc1", f"{THEIRS}.mlp.fc1", LINEAR),
    Rule(f"{OURS}/fc2", f"{THEIRS}.mlp.fc2", LINEAR),
    Rule(f"{OURS}/gamma", f"{THEIRS}.gamma", PLAIN),
    Rule("encoder/stage_{i}/merge/norm", "stages.{i+1}.downsample.0", NORM),
    Rule("encoder/stage_{i}/merge/conv", "stages.{i+1}.downsample.1", BIASED_CONV),
    Rule("encoder/norm", "head.norm", NORM),
    Rule("classifier/head", "head.fc", LINEAR),
)


def model_of(arrays: Arrays, first: tuple[int, int], hints: Mapping) -> dict:
    """config.model as far as shapes tell; the image size is 224 unless hinted."""
    stem, channels = first
    stages = range(read_shapes.count(arrays, "encoder/stage_%d/blocks"))
    depth = lambda i: read_shapes.count(arrays, f"encoder/stage_{i}/blocks_%d/")
    size = read_shapes.require(hints["encoder"], "image_size", "encoder", (224, 224))
    gammas = [arrays[f"encoder/stage_{i}/blocks_0/gamma"] for i in stages]
    encoder = dict(
        name="convnext",
        image_size=tuple(size),
        channels=channels,
        stem=stem,
        depths=tuple(map(depth, stages)),
        widths=tuple(len(gamma) for gamma in gammas),
        mlp_ratio=read_shapes.mlp_ratio(arrays["encoder/stage_0/blocks_0/fc1/kernel"]),
        layer_scale=1e-6,  # an initial value only, so no file tells it
        drop_path=0.0,
        remat="none",
    )
    model = {"precision": "float32", "encoder": encoder}
    return read_shapes.with_heads(model, arrays)


def timm_network(torch, model: Mapping, stem):
    """timm's class for the network of config.model."""
    from timm.models.convnext import ConvNeXt

    encoder = model["encoder"]
    return ConvNeXt(
        in_chans=encoder["channels"],
        num_classes=classes_of(model),
        depths=tuple(encoder["depths"]),
        dims=tuple(encoder["widths"]),
        patch_size=encoder["stem"],
        ls_init_value=encoder["layer_scale"],
    )


FAMILY = Family(
    rules={"timm": TIMM},
    dialects=(("timm's ConvNeXt", TIMM),),
    model_of=model_of,
    first_kernel="encoder/patch_conv/kernel",
    torch={"timm": Library(timm_network, timm_outputs("map", channels_first=True))},
    timm_class="ConvNeXt",
)
