"""The other side of --check: a program that runs in torch, in a process of its own.

    python -P torch_side.py FOLDER

FOLDER/job.json says what was exported; the program loads the file, with every name
accounted for, into the class that it is meant for, runs pictures_N.npy [B, C, H, W]
through it, and writes result_N.npz and said.json. Where the library is missing or has
no such network, the class is that of the file job["reference"], if there is one.
"""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np  # noqa: E402

MISSING = 3  # the exit code when nothing can be loaded into


class Missing(Exception):
    """No class for this file; its text says what to install."""


def timm(model: dict):
    """timm's class for this network."""
    encoder = model["encoder"]
    classes = model.get("classifier", {}).get("classes", 0)
    make = {"vit": timm_vit, "beit": timm_beit, "swin": timm_swin}
    make["resnet"] = timm_resnet
    return make[encoder["name"]](encoder, classes)


def sizes(encoder: dict, classes: int) -> dict:
    names = {"image_size": "img_size", "patch": "patch_size", "channels": "in_chans"}
    names |= {"width": "embed_dim", "mlp_ratio": "mlp_ratio"}
    found = {theirs: encoder[ours] for ours, theirs in names.items()}
    return found | {"img_size": tuple(found["img_size"]), "num_classes": classes}


def timm_vit(encoder, classes):
    from timm.models.vision_transformer import VisionTransformer

    pool = {"class": "token", "mean": "avg", "mean_norm": "avg"}[encoder["pool"]]
    return VisionTransformer(
        **sizes(encoder, classes),
        depth=encoder["depth"],
        num_heads=encoder["heads"],
        global_pool=pool,
        fc_norm=encoder["pool"] == "mean_norm",
    )


def timm_beit(encoder, classes):
    from timm.models.beit import Beit

    return Beit(
        **sizes(encoder, classes),
        depth=encoder["depth"],
        num_heads=encoder["heads"],
        global_pool="token" if encoder["pool"] == "class" else "avg",
        use_fc_norm=encoder["pool"] == "mean_norm",
        init_values=encoder["layer_scale"],
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=encoder["relative"] == "shared",
        use_rel_pos_bias=encoder["relative"] == "each",
    )


def timm_swin(encoder, classes):
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        **sizes(encoder, classes),
        depths=tuple(encoder["depths"]),
        num_heads=tuple(encoder["heads"]),
        window_size=encoder["window"],
    )


def timm_resnet(encoder, classes):
    from timm.models import resnet

    if encoder["stem"] != "imagenet" or len(encoder["layers"]) != 4:
        raise Missing(f"timm's ResNet has no stem {encoder['stem']!r}")
    kind = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    return resnet.ResNet(
        kind[encoder["block"]],
        tuple(encoder["layers"]),
        num_classes=classes,
        in_chans=encoder["channels"],
        stem_width=encoder["stem_width"],
        channels=tuple(encoder["widths"]),
    )


def torchvision(model: dict):
    """torchvision's class, with another stem put in where a paper does so."""
    import torch
    from torchvision.models import resnet

    encoder = model["encoder"]
    usual = (encoder["stem_width"], *encoder["widths"]) == (64, 64, 128, 256, 512)
    if not usual:
        raise Missing("torchvision's ResNet has widths of 64 to 512 only")
    kind = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    classes = model.get("classifier", {}).get("classes", 0)
    net = resnet.ResNet(kind[encoder["block"]], list(encoder["layers"]), classes or 1)
    side, stride, pad, pool = job["stem"]
    if (side, encoder["channels"]) != (7, 3):
        how = {"stride": stride, "padding": pad, "bias": False}
        net.conv1 = torch.nn.Conv2d(encoder["channels"], 64, side, **how)
    if not pool:
        net.maxpool = torch.nn.Identity()
    if not classes:
        net.fc = torch.nn.Identity()
    return net


def transformers(folder: Path):
    """The class that config.json names, loaded from its folder, strictly."""
    import transformers as hf

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    how = {"add_pooling_layer": False} if name == "ViTModel" else {}
    hf.logging.set_verbosity_error()
    net, info = getattr(hf, name).from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **how
    )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise RuntimeError(f"{name} does not take the file as it is: {wrong}")
    return net


def weights_of(job: dict) -> dict:
    """The tensors of the file, by name."""
    import torch

    if job["to"] == "detectron2":
        from mixjax.export import files

        named, _ = files.read(Path(job["file"]), job["file"])
    else:
        from safetensors.numpy import load_file

        named = load_file(job["file"])
    return {k: torch.from_numpy(np.array(v)) for k, v in named.items()}


def reference(job: dict, why: str):
    """The class of job["reference"]."""
    if not job["reference"]:
        raise Missing(why)
    spec = importlib.util.spec_from_file_location("reference", job["reference"])
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module.build(job["to"], job["model"], job["stem"])


def build(job: dict):
    """(network with the weights, who made its class)."""
    if job["to"] == "hf":
        try:
            net = transformers(Path(job["file"]).parent)
        except ImportError as error:
            raise Missing(f"{error}; pip install transformers") from error
        return net.eval(), f"transformers' {type(net).__name__}"
    makers = {"timm": timm, "torchvision": torchvision}
    try:
        if job["to"] not in makers:
            raise Missing(f"no installed package has {job['to']}'s network")
        net = makers[job["to"]](job["model"])
        who = f"{job['to']}'s {type(net).__name__}"
    except ImportError as error:
        net = reference(job, f"{error}; pip install {job['to']}")
        who = f"{Path(job['reference']).name}, since {job['to']} is not installed"
    except Missing as error:
        net = reference(job, str(error))
        who = f"{Path(job['reference']).name}, since {error}"
    net.load_state_dict(weights_of(job), strict=True)
    return net.eval(), who


# --- what comes out --------------------------------------------------------------


def outputs(net, x, job: dict) -> dict:
    """{name: array} of what job["outputs"] names, as our side has it."""
    kind, model = type(net).__name__, job["model"]
    if hasattr(net, "outputs"):  # of a reference
        return net.outputs(x)
    if job["to"] == "hf":
        return hf_outputs(net, x, kind)
    encoder = model["encoder"]["name"]
    if job["to"] == "torchvision":
        return torchvision_outputs(net, x, "classifier" in model)
    found = {}
    y = net.forward_features(x)
    if encoder in ("vit", "beit"):
        found["tokens"] = y
    else:
        found["map"] = y if encoder == "swin" else y.permute(0, 2, 3, 1)
    found["features"] = net.forward_head(y, pre_logits=True)
    if "classifier" in model:
        found["logits"] = net.forward_head(y)
    return found


def torchvision_outputs(net, x, classifies: bool) -> dict:
    kept = {}
    hook = net.layer4.register_forward_hook(lambda m, i, y: kept.update(map=y))
    y = net(x)
    hook.remove()
    found = {"map": kept["map"].permute(0, 2, 3, 1)}
    found["features"] = kept["map"].mean((2, 3))
    return found | ({"logits": y} if classifies else {})


def hf_outputs(net, x, kind: str) -> dict:
    import torch

    if kind == "ViTMAEForPreTraining":
        # Every patch is kept, in its order: so the whole of it can be compared.
        net.config.mask_ratio = net.vit.embeddings.config.mask_ratio = 0.0
        length = net.vit.embeddings.patch_embeddings.num_patches
        noise = torch.arange(length).float().expand(len(x), -1)
        found = net(x, noise=noise, output_hidden_states=True)
        tokens = net.vit(x, noise=noise).last_hidden_state
        return {"tokens": tokens, "prediction": found.logits}
    if kind.endswith("ForMaskedImageModeling"):
        found = net(x).reconstruction
        return {"prediction": found.permute(0, 2, 3, 1)}
    if kind.endswith("ForImageClassification"):
        return {"logits": net(x).logits}
    tokens = net(x).last_hidden_state
    return {"tokens": tokens} if kind == "ViTModel" else {"flat_map": tokens}


def main(folder: Path) -> int:
    """Runs the job in `folder`; returns the exit code."""
    try:
        import torch
    except ImportError:
        print("torch is not installed; pip install torch", file=sys.stderr)
        return MISSING
    torch.set_grad_enabled(False)
    try:
        net, who = build(job)
    except Missing as error:
        print(f"{error}", file=sys.stderr)
        return MISSING
    for i in range(job["batches"]):
        x = torch.from_numpy(np.load(folder / f"pictures_{i}.npy"))
        found = {k: v.float().numpy() for k, v in outputs(net, x, job).items()}
        np.savez(folder / f"result_{i}.npz", **found)
    said = {"who": who, "torch": torch.__version__}
    (folder / "said.json").write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    place = Path(sys.argv[1])
    job = json.loads((place / "job.json").read_text())
    sys.exit(main(place))
