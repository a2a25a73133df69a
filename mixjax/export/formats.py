"""The targets of an export: the file and names of each, and what cannot go there."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError
from mixjax.export import families
from mixjax.export.name_rules import Arrays, to_theirs
from mixjax.export.weights import DECODERS, Weights


class Target(NamedTuple):
    """A project whose names are written.

    kind: of file, see files.WRITERS. parts: what may be written beside the encoder.
    """

    title: str
    kind: str
    parts: tuple[str, ...]


TARGETS = {
    "timm": Target("timm", "safetensors", ("classifier",)),
    "torchvision": Target("torchvision", "safetensors", ("classifier",)),
    "hf": Target("transformers", "safetensors", (*DECODERS, "classifier")),
    "detectron2": Target("detectron2", "pkl", ("classifier",)),
    "mae": Target("MAE's official code", "safetensors", ("decoder", "classifier")),
    "npz": Target("NumPy", "npz", (*DECODERS, "classifier")),
}


def named(weights: Weights, to: str) -> Arrays:
    """{name in the target's file: array}.

    UsageError with the reason if the target has no such network.
    """
    check_fits(weights, to)
    if to == "npz":  # our own names and arrays
        return dict(weights.arrays)
    encoder = weights.model["encoder"]
    family = families.find(encoder["name"])
    arrays = prepared(weights, to, family)
    names = to_theirs(arrays, family.rules_for(to, arrays), encoder)
    if family.batch_norm:
        steps = np.array(weights.step, np.int64)  # as torch would have counted them
        means = [name for name in names if name.endswith(".running_mean")]
        counter = lambda name: name.replace("running_mean", "num_batches_tracked")
        names |= {counter(name): steps for name in means}
    return names


def prepared(weights: Weights, to: str, family: families.Family) -> Arrays:
    """The arrays that the target stores, still under our paths."""
    arrays = dict(weights.arrays)
    if "pixel_head" not in weights.parts:
        arrays.pop("encoder/mask_token", None)  # only SimMIM's decoder needs it
    arrays = family.to_file(arrays, weights.model)
    if to != "mae" and "classifier/norm/mean" in arrays:
        arrays = fold_norm(arrays, weights.model["norm"]["eps"])
    return arrays


def fold_norm(arrays: Arrays, eps: float) -> Arrays:
    """The arrays with the batch norm before a classifier folded into its layer."""
    arrays = dict(arrays)
    mean, var = (arrays.pop(f"classifier/norm/{k}") for k in ("mean", "var"))
    factor = 1 / np.sqrt(var.astype(np.float64) + eps)
    kernel = arrays["classifier/head/kernel"] * factor[:, None]  # [D, classes]
    bias = arrays["classifier/head/bias"] - mean @ kernel
    arrays["classifier/head/kernel"] = kernel.astype(np.float32)
    arrays["classifier/head/bias"] = bias.astype(np.float32)
    return arrays


def notes(weights: Weights, to: str) -> dict:
    """The notes inside a file, from which it is read again without guessing."""
    model = {
        k: dict(v) if isinstance(v, Mapping) else v for k, v in weights.model.items()
    }
    # The network as the target has it, see `prepared`.
    if "mask_token" in model["encoder"] and to != "npz":
        model["encoder"]["mask_token"] = "pixel_head" in model
    if "classifier" in model and to not in ("mae", "npz"):
        model["classifier"]["feature_norm"] = False
    config = {**weights.config, "model": model, "init_from": ""}
    return {"config": config, "part": weights.part, "step": weights.step, "to": to}


# --- what does not go ------------------------------------------------------------


def targets_of(encoder: str) -> list[str]:
    """The targets that have names for an encoder."""
    if encoder not in families.names():
        return []
    rules = families.find(encoder).rules
    return [to for to in TARGETS if to in rules or to == "npz"]


def check_fits(weights: Weights, to: str) -> None:
    """UsageError with the reason if the target has no such network."""
    name = weights.model["encoder"]["name"]
    possible = targets_of(name)
    if to not in possible:
        places = ", ".join(possible) or "no target yet"
        raise UsageError(
            f"--to={to} has no names for a {name} encoder; it goes to {places}."
        )
    for part in weights.parts:
        if part != "encoder" and part not in TARGETS[to].parts:
            others = [k for k, t in TARGETS.items() if part in t.parts]
            raise UsageError(
                f"--to={to} has no names for a {part}; it goes to {', '.join(others)}."
            )
    refusal = families.find(name).refusals.get(to)
    reason = refusal(weights) if refusal else None
    if reason:
        raise UsageError(f"--to={to}: {reason}")
