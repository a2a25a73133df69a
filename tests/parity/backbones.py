"""Sections of config.model as reference files of Swin and of SimMIM's ViT have them."""


def swin(ref, images: str, **changes) -> dict:
    """The Swin of a file; images: the key of its images [B, C, H, W]."""
    names = ref.part("params")
    block = "layers.0.blocks.0.mlp.fc1.weight"
    (fc1,) = (v for k, v in names.items() if k.endswith(block))
    side = ref["hp/img_size"]
    return {
        "name": "swin",
        "image_size": (side, side),
        "channels": ref[images].shape[1],
        "patch": ref["hp/patch_size"],
        "width": ref["hp/embed_dim"],
        "depths": tuple(ref["hp/depths"].tolist()),
        "heads": tuple(ref["hp/num_heads"].tolist()),
        "window": ref["hp/window_size"],
        "mlp_ratio": fc1.shape[0] / fc1.shape[1],
        "drop_path": 0.0,
        "mask_token": any(k.endswith("mask_token") for k in names),
        "remat": "none",
        **changes,
    }


def beit(ref, images: str, **changes) -> dict:
    """The ViT of a file of SimMIM; images: the key of its images [B, C, H, W]."""
    fc1 = ref["params/encoder.blocks.0.mlp.fc1.weight"]
    side = ref["hp/img_size"]
    return {
        "name": "beit",
        "image_size": (side, side),
        "channels": ref[images].shape[1],
        "patch": ref["hp/patch_size"],
        "width": ref["hp/embed_dim"],
        "depth": ref["hp/depth"],
        "heads": ref["hp/num_heads"],
        "mlp_ratio": fc1.shape[0] / fc1.shape[1],
        "layer_scale": ref["hp/init_values"],
        "drop_path": 0.0,
        "mask_token": True,
        "pool": "mean",
        "relative": "shared",
        "remat": "none",
        "scan": False,
        **changes,
    }
