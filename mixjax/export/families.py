"""What a family of encoders offers to the export, and how its file is found."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mixjax.export.name_rules import Arrays, Rule

Rules = tuple[Rule, ...]


class NoSuchNetwork(Exception):
    """A package is installed but has no class for this network; the text says why."""


class Library(NamedTuple):
    """The network of an installed torch package; both run in the process of torch.

    build: (torch, config.model, stem) -> module; imports the package, and raises
    NoSuchNetwork. outputs: (module, images [B, C, H, W], config.model) -> {name:
    tensor}, with our names and axes: "tokens" [B, 1 + L, D], "map" [B, h, w, D],
    "features" [B, D], "logits" [B, classes].
    """

    build: Callable
    outputs: Callable


class HuggingFace(NamedTuple):
    """How transformers describes a family in its config.json."""

    prefix: str  # of its classes: ViT in ViTModel
    config: Callable  # Weights -> entries of config.json that only this family has
    eps: float  # of our layer norms
    default_eps: float  # of theirs, where config.json does not name it
    hints: Callable = lambda config: {}  # config.json -> hints beside the image size


class Family(NamedTuple):
    """Names of one encoder under all the projects that know it.

    rules: {target of formats.TARGETS: rules for the whole file}; npz needs none.
    dialects: (title, rules) of each way in which files name such a network. model_of:
    (arrays by our path, (side, input channels) of the first convolution, hints) ->
    config.model as far as shapes and hints tell; a KeyError names what the file lacks.
    first_kernel: our path of the first convolution's kernel.

    special_rules: (target, arrays) -> rules to take instead of `rules`, or None.
    refusals: {target: function of Weights -> why it cannot go there, or None}.
    to_file: (arrays, config.model) -> arrays with what we compute and others store.
    from_file: (arrays, config.model, whether that is known) -> both, the inverse.
    tolerance: of --check, in units of the largest value. batch_norm: whether files have
    a num_batches_tracked for each batch norm. stem: encoder section -> (side, stride,
    padding, whether a pooling follows) of the first convolution, if that can vary.
    torch: {target: Library}. timm_class: its name, for the model card.
    """

    rules: Mapping[str, Rules]
    dialects: tuple[tuple[str, Rules], ...]
    model_of: Callable
    first_kernel: str
    special_rules: Callable = lambda target, arrays: None
    refusals: Mapping[str, Callable] = {}
    to_file: Callable = lambda arrays, model: arrays
    from_file: Callable = lambda arrays, model, known: (arrays, model)
    tolerance: float = 1e-5
    batch_norm: bool = False
    stem: Callable = lambda encoder: None
    torch: Mapping[str, Library] = {}
    timm_class: str = ""
    hf: HuggingFace | None = None

    def rules_for(self, target: str, arrays: Arrays) -> Rules:
        """The rules for these arrays in a file of `target`."""
        return self.special_rules(target, arrays) or self.rules[target]


def names() -> list[str]:
    """The encoders that have a family: files both here and in mixjax/models."""
    here = Path(__file__).parent
    models = here.with_name("models")
    files = [path for path in here.glob("*.py") if path.name != "__init__.py"]
    return sorted(path.stem for path in files if (models / path.name).is_file())


def find(encoder: str) -> Family:
    """The family of config.model.encoder.name, which must be one of names()."""
    return importlib.import_module(f"mixjax.export.{encoder}").FAMILY


# --- what families use for timm --------------------------------------------------


def timm_sizes(model: Mapping) -> dict:
    """Arguments that timm's transformers have in common."""
    encoder = model["encoder"]
    return {
        "img_size": tuple(encoder["image_size"]),
        "patch_size": encoder["patch"],
        "in_chans": encoder["channels"],
        "embed_dim": encoder["width"],
        "mlp_ratio": encoder["mlp_ratio"],
        "num_classes": classes_of(model),
    }


def classes_of(model: Mapping) -> int:
    """The number of classes, 0 without a classifier."""
    return model.get("classifier", {}).get("classes", 0)


def timm_outputs(name: str, *, channels_first: bool = False) -> Callable:
    """Library.outputs for timm's classes.

    name: what forward_features returns in our words, "tokens" or "map".
    channels_first: whether that is [B, D, h, w].
    """

    def run(net, images, model: Mapping) -> dict:
        last = net.forward_features(images)
        ours = last.permute(0, 2, 3, 1) if channels_first else last
        outputs = {name: ours, "features": net.forward_head(last, pre_logits=True)}
        if "classifier" in model:
            outputs["logits"] = net.forward_head(last)
        return outputs

    return run
