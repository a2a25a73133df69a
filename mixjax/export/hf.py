"""config.json and preprocessor_config.json of Hugging Face's transformers."""

from collections.abc import Mapping

from mixjax.export import families
from mixjax.export.weights import Weights


def class_of(weights: Weights) -> str:
    """The class of transformers that these weights are for."""
    family = families.find(weights.model["encoder"]["name"]).hf.prefix
    if "decoder" in weights.parts:
        return "ViTMAEForPreTraining"
    if "pixel_head" in weights.parts:
        return f"{family}ForMaskedImageModeling"
    if "classifier" in weights.parts:
        return f"{family}ForImageClassification"
    return f"{family}Model"


def config(weights: Weights) -> dict:
    """The content of config.json, with every value that differs from a default."""
    encoder = weights.model["encoder"]
    height, width = map(int, encoder["image_size"])
    entries = {
        "architectures": [class_of(weights)],
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder["patch"],
        "num_channels": encoder["channels"],
        "initializer_range": 0.02,
    }
    entries |= families.find(encoder["name"]).hf.config(weights)
    if "classifier" in weights.parts:
        count = weights.model["classifier"]["classes"]
        labels = {i: f"LABEL_{i}" for i in range(count)}
        entries["id2label"] = {str(i): label for i, label in labels.items()}
        entries["label2id"] = {label: i for i, label in labels.items()}
    return entries


def preprocessor(size: tuple[int, int], view: Mapping) -> dict:
    """The content of preprocessor_config.json; view: mean and std, see card.view_of."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": int(size[0]), "width": int(size[1])},
        "resample": 3,  # bicubic, as Pillow numbers its filters
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view["mean"]),
        "image_std": list(view["std"]),
    }
