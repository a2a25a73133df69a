"""What can be written: for each target the names, the file, and what does not go."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError
from mixjax.export import resnet, swin, vit
from mixjax.export.name_rules import Arrays, Rule, to_theirs
from mixjax.export.weights import DECODERS, Weights, fixed_table
from mixjax.models import windows

TOLERANCE = {"vit": 1e-5, "beit": 1e-5, "resnet": 1e-5, "swin": 5e-5}


class Target(NamedTuple):
    """kind: of file, see files.WRITERS. rules: {encoder: its rules, if it goes there}.

    parts: what may be written beside the encoder.
    """

    title: str
    kind: str
    rules: Mapping[str, tuple[Rule, ...]]
    parts: tuple[str, ...]


TARGETS = {
    "timm": Target(
        "timm",
        "safetensors",
        {
            "vit": (*vit.TIMM, *vit.HEAD),
            "beit": (*vit.BEIT, *vit.HEAD),
            "swin": swin.TIMM,
            "resnet": resnet.TORCHVISION,
        },
        ("classifier",),
    ),
    "torchvision": Target(
        "torchvision", "safetensors", {"resnet": resnet.TORCHVISION}, ("classifier",)
    ),
    "hf": Target(
        "transformers",
        "safetensors",
        {"vit": vit.HF_WHOLE, "swin": swin.HF_WHOLE},
        ("decoder", "pixel_head", "classifier"),
    ),
    "detectron2": Target(
        "detectron2", "pkl", {"resnet": resnet.DETECTRON2}, ("classifier",)
    ),
    "mae": Target(
        "MAE's official code",
        "safetensors",
        {"vit": (*vit.MAE, *vit.HEAD)},
        ("decoder", "classifier"),
    ),
    "npz": Target(
        "NumPy",
        "npz",
        dict.fromkeys(("vit", "beit", "swin", "resnet"), ()),
        (*DECODERS, "classifier"),
    ),
}
PROBED = (*vit.MAE, *vit.PROBE)


def named(weights: Weights, to: str) -> Arrays:
    """{name there: array}; UsageError in a sentence if the target has no place."""
    target, encoder = TARGETS[to], weights.model["encoder"]
    check_fits(weights, to)
    arrays = dressed(weights, to)
    if to == "npz":
        return arrays
    rules = target.rules[encoder["name"]]
    if to == "hf" and weights.parts == ("encoder",):
        rules = {"vit": vit.HF, "swin": swin.HF}[encoder["name"]]
    if to == "mae" and "classifier/norm/mean" in arrays:
        rules = PROBED
    found = to_theirs(arrays, rules, encoder)
    if encoder["name"] == "resnet":
        steps = np.array(weights.step, np.int64)  # that torch would have counted
        counted = [n for n in found if n.endswith(".running_mean")]
        to_count = lambda n: n.replace("running_mean", "num_batches_tracked")
        found |= {to_count(n): steps for n in counted}
    return found


def dressed(weights: Weights, to: str) -> Arrays:
    """The arrays as the target wants them: tables written out, no unused token."""
    arrays, encoder = dict(weights.arrays), weights.model["encoder"]
    if "pixel_head" not in weights.parts and to != "npz":
        arrays.pop("encoder/mask_token", None)
    if to == "npz":
        return arrays
    if encoder["name"] == "vit":
        table = fixed_table(encoder, encoder["width"])
        arrays.setdefault("encoder/pos_embed", table)
        if "decoder" in weights.parts:
            width = weights.model["decoder"]["width"]
            arrays.setdefault("decoder/pos_embed", fixed_table(encoder, width))
    if to != "mae" and "classifier/norm/mean" in arrays:
        arrays = folded(arrays, weights.model["norm"]["eps"])
    return arrays


def folded(arrays: Arrays, eps: float) -> Arrays:
    """The batch norm before a classifier made part of its layer."""
    arrays = dict(arrays)
    mean, var = (arrays.pop(f"classifier/norm/{k}") for k in ("mean", "var"))
    factor = 1 / np.sqrt(var.astype(np.float64) + eps)
    kernel = arrays["classifier/head/kernel"] * factor[:, None]  # [D, classes]
    bias = arrays["classifier/head/bias"] - mean @ kernel
    arrays["classifier/head/kernel"] = kernel.astype(np.float32)
    arrays["classifier/head/bias"] = bias.astype(np.float32)
    return arrays


def notes(weights: Weights, to: str) -> dict:
    """What a file says of itself, so that it can be read again without a guess."""
    model = {
        k: dict(v) if isinstance(v, Mapping) else v for k, v in weights.model.items()
    }
    if "mask_token" in model["encoder"] and to != "npz":
        model["encoder"]["mask_token"] = "pixel_head" in model
    if "classifier" in model and to not in ("mae", "npz"):
        model["classifier"]["feature_norm"] = False
    config = {**weights.config, "model": model, "init_from": ""}
    return {"config": config, "part": weights.part, "step": weights.step, "to": to}


# --- what does not go ------------------------------------------------------------


def check_fits(weights: Weights, to: str) -> None:
    """UsageError with the reason if the target has no such network."""
    target, model = TARGETS[to], weights.model
    name = model["encoder"]["name"]
    if name not in target.rules:
        others = [k for k, t in TARGETS.items() if name in t.rules]
        where = ", ".join(others) or "no file yet"
        raise UsageError(
            f"--to={to} has no names for a {name} encoder; it goes to {where}."
        )
    for part in weights.parts:
        if part != "encoder" and part not in target.parts:
            others = [k for k, t in TARGETS.items() if part in t.parts]
            raise UsageError(
                f"--to={to} has no names for a {part}; it goes to {', '.join(others)}."
            )
    reason = WHY_NOT.get((to, name), lambda weights: None)(weights)
    if reason:
        raise UsageError(f"--to={to}: {reason}")


def not_hf_vit(weights: Weights) -> str | None:
    encoder = weights.model["encoder"]
    size = encoder["image_size"]
    if encoder["pool"] == "mean_norm":
        return "ViTModel has no norm after the mean (fc_norm); --to=timm has one."
    if "classifier" in weights.parts and encoder["pool"] != "class":
        return (
            f"ViTForImageClassification reads the class token, but "
            f"model.encoder.pool={encoder['pool']!r}; take --head=no or --to=timm."
        )
    if "decoder" in weights.parts and size[0] != size[1]:
        return f"ViTMAEForPreTraining takes square pictures only, not {tuple(size)}."
    if "decoder" in weights.parts and "classifier" in weights.parts:
        return "no class there has a decoder and a classifier; take --head=no."
    return None


def stages(encoder: Mapping):
    """(map size, side of its windows) of every stage of a Swin."""
    size = [side // encoder["patch"] for side in encoder["image_size"]]
    for i in range(len(encoder["depths"])):
        here = tuple(side // 2**i for side in size)
        yield here, windows.in_map(here, encoder["window"])[0]


def not_timm_swin(weights: Weights) -> str | None:
    window = weights.model["encoder"]["window"]
    for size, side in stages(weights.model["encoder"]):
        if min(size) <= window and size[0] != size[1]:
            return (
                f"a map of {size} tokens has windows of {side} x {side} here, and "
                f"oblong or shifted ones there; take another --image_size, or --to=hf."
            )
    return None


def not_hf_swin(weights: Weights) -> str | None:
    window = weights.model["encoder"]["window"]
    for size, side in stages(weights.model["encoder"]):
        if side < window:
            return (
                f"SwinModel has one size of windows, but those of a map of {size} "
                f"tokens are {side} and not {window}; --to=timm has both."
            )
    if "pixel_head" in weights.parts and "classifier" in weights.parts:
        return "no class there has a decoder and a classifier; take --head=no."
    return None


def not_torch_norm(weights: Weights) -> str | None:
    eps = weights.model["norm"]["eps"]
    return None if eps == 1e-5 else f"model.norm.eps={eps}, but torch's is 1e-5."


WHY_NOT: dict[tuple[str, str], Callable] = {
    ("hf", "vit"): not_hf_vit,
    ("hf", "swin"): not_hf_swin,
    ("timm", "swin"): not_timm_swin,
    **{(to, "resnet"): not_torch_norm for to in ("timm", "torchvision", "detectron2")},
}
