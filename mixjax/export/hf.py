"""config.json and preprocessor_config.json of Hugging Face's transformers."""

from collections.abc import Mapping

from mixjax.export.weights import Weights


def class_of(weights: Weights) -> str:
    """The class of transformers that these weights are for."""
    family = {"vit": "ViT", "swin": "Swin"}[weights.model["encoder"]["name"]]
    if "decoder" in weights.parts:
        return "ViTMAEForPreTraining"
    if "pixel_head" in weights.parts:
        return f"{family}ForMaskedImageModeling"
    if "classifier" in weights.parts:
        return f"{family}ForImageClassification"
    return f"{family}Model"


def side(size) -> int | list[int]:
    return int(size[0]) if size[0] == size[1] else [int(x) for x in size]


def config(weights: Weights) -> dict:
    """The text of config.json; every value that differs from a default is there."""
    encoder = weights.model["encoder"]
    both = {
        "architectures": [class_of(weights)],
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "image_size": side(encoder["image_size"]),
        "patch_size": encoder["patch"],
        "num_channels": encoder["channels"],
        "initializer_range": 0.02,
    }
    own = vit if encoder["name"] == "vit" else swin
    both |= own(weights)
    if "classifier" in weights.parts:
        count = weights.model["classifier"]["classes"]
        names = {i: f"LABEL_{i}" for i in range(count)}
        both["id2label"] = {str(i): n for i, n in names.items()}
        both["label2id"] = {n: i for i, n in names.items()}
    return both


def vit(weights: Weights) -> dict:
    encoder = weights.model["encoder"]
    found = {
        "model_type": "vit",
        "layer_norm_eps": 1e-6,
        "hidden_size": encoder["width"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["heads"],
        "intermediate_size": int(encoder["width"] * encoder["mlp_ratio"]),
        "encoder_stride": encoder["patch"],
    }
    if "decoder" in weights.parts:
        decoder, method = weights.model["decoder"], weights.config["method"]
        found |= {
            "model_type": "vit_mae",
            "decoder_hidden_size": decoder["width"],
            "decoder_num_hidden_layers": decoder["depth"],
            "decoder_num_attention_heads": decoder["heads"],
            "decoder_intermediate_size": int(decoder["width"] * decoder["mlp_ratio"]),
            "mask_ratio": method.get("mask_ratio", 0.75),
            "norm_pix_loss": bool(method.get("norm_pix", False)),
        }
    return found


def swin(weights: Weights) -> dict:
    encoder = weights.model["encoder"]
    halvings = len(encoder["depths"]) - 1
    return {
        "model_type": "swin",
        "layer_norm_eps": 1e-5,
        "embed_dim": encoder["width"],
        "hidden_size": encoder["width"] * 2**halvings,
        "depths": list(encoder["depths"]),
        "num_heads": list(encoder["heads"]),
        "window_size": encoder["window"],
        "mlp_ratio": encoder["mlp_ratio"],
        "drop_path_rate": encoder["drop_path"],
        "use_absolute_embeddings": False,
        "encoder_stride": encoder["patch"] * 2**halvings,
    }


def preprocessor(size: tuple[int, int], view: Mapping) -> dict:
    """The text of preprocessor_config.json; view: mean and std, see card.view_of."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": int(size[0]), "width": int(size[1])},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view["mean"]),
        "image_std": list(view["std"]),
    }
