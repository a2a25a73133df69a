"""The model card beside exported weights: what they are and where they come from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mixjax.data import views
from mixjax.export import families, hf
from mixjax.export.check import Result
from mixjax.export.formats import TARGETS
from mixjax.export.weights import Weights

LIBRARY = {"timm": "timm", "hf": "transformers"}
LOADING = {
    "timm": """from safetensors.torch import load_file

# net: {cls} of timm 1.0, with the settings above
net.load_state_dict(load_file("{file}"), strict=True)""",
    "torchvision": """from safetensors.torch import load_file

net.load_state_dict(load_file("{file}"), strict=True)""",
    "hf": """from transformers import {cls}

net = {cls}.from_pretrained("."{options})""",
    "detectron2": """# In detectron2's yaml, with STRIDE_IN_1X1: False, SyncBN and RGB.
MODEL:
  WEIGHTS: "{file}"
  PIXEL_MEAN: {mean}
  PIXEL_STD: {std}""",
    "mae": """from safetensors.torch import load_file

net.load_state_dict(load_file("{file}"), strict=True)""",
    "npz": """import numpy as np

with np.load("{file}", allow_pickle=False) as arrays: ...""",
}


def view_of(config: Mapping) -> dict:
    """How images are prepared: the recipe's line, and the mean and deviation in it."""
    text = config["data"]["eval_view"]
    view = views.parse(text, "data.eval_view")
    channels = config["model"]["encoder"]["channels"]
    # One value may stand for all channels.
    per_channel = lambda x: [float(v) for v in (list(x) * channels)[:channels]]
    return {"text": text, "mean": per_channel(view.mean), "std": per_channel(view.std)}


def commit_of(workdir: str) -> str:
    """The commit that trained the run, and whether its code was changed."""
    path = Path(workdir).expanduser() / "git.txt"
    lines = path.read_text().splitlines() if path.is_file() else ["not recorded"]
    changed = any(line.strip() for line in lines[1:])
    return lines[0] + (" with uncommitted changes" if changed else "")


def digest(config: Mapping) -> str:
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def front_matter(to: str, licence: str) -> list[str]:
    lines = ["---", f"license: {licence or 'unknown'}"]
    if to in LIBRARY:
        lines.append(f"library_name: {LIBRARY[to]}")
    return [*lines, "tags: [image-feature-extraction, self-supervised, mixjax]", "---"]


def loading(weights: Weights, to: str, file: str, view: Mapping) -> str:
    """The lines of code that load the file."""
    family = families.find(weights.model["encoder"]["name"])
    cls = hf.class_of(weights) if to == "hf" else family.timm_class
    pixels = lambda values: [round(255 * v, 3) for v in values]  # of 0 .. 255
    return LOADING[to].format(
        file=file,
        cls=cls,
        options=", add_pooling_layer=False" if cls == "ViTModel" else "",
        mean=pixels(view["mean"]),
        std=pixels(view["std"]),
    )


def measured(result: Result | None) -> list[str]:
    if result is None:
        return ["Not compared with PyTorch (`--check` does so)."]
    lines = [
        f"The same images ({result.images}) through mixjax and {result.network} "
        f"(torch {result.torch}), in float32. Allowed is {result.tolerance:g} of the "
        f"largest value, or of 1 if that is smaller.",
        "",
        "| output | pictures | max difference | mean difference | largest value |",
        "| --- | --- | --- | --- | --- |",
    ]
    for d in result.differences:
        numbers = f"{d.largest:.3g} | {d.mean:.3g} | {d.top:.4g}"
        lines.append(f"| {d.name} | {d.size[0]} x {d.size[1]} | {numbers} |")
    return lines


def text(
    weights: Weights,
    to: str,
    *,
    file: Path,
    workdir: str,
    licence: str,
    result: Result | None,
) -> str:
    """The card, Markdown with the front matter of Hugging Face."""
    config, encoder = weights.config, dict(weights.model["encoder"])
    view, method = view_of(config), config["method"]["name"]
    name = encoder.pop("name")
    settings = ", ".join(f"{k}={v}" for k, v in encoder.items())
    whose = "the teacher's" if weights.part == "teacher" else "the trained network's"
    stated = licence or "not stated by whoever exported them (`--license` states it)"
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    lines = [
        *front_matter(to, licence),
        "",
        f"# {name} by {method}, names of {TARGETS[to].title}",
        "",
        f"{', '.join(weights.parts)}: {whose}, after {weights.step} steps of {method}.",
        "",
        f"- file: `{file.name}`, sha256 {sha}",
        f"- {name}: {settings}",
        f"- config: {digest(config)} (sha256 of config.json), seed {config['seed']}",
        f"- commit: {commit_of(workdir)}",
        f"- data: {config['data']['source']}, {config['data']['split']}",
        f"- licence of the weights: {stated}",
        f"- pictures: `{view['text']}`; mean {view['mean']}, deviation {view['std']} "
        f"of values in 0 .. 1",
        "",
        "```",
        loading(weights, to, file.name, view),
        "```",
        "",
        "## Measured differences",
        "",
        *measured(result),
    ]
    return "\n".join(lines) + "\n"
