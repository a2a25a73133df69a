"""The other side of --check: a program that runs torch, in a process of its own.

    python -P torch_side.py FOLDER

FOLDER/job.json describes what was exported. The program loads the file, with every name
accounted for, into the class that it is meant for, runs pictures_N.npy [B, C, H, W]
through it, and writes result_N.npz and report.json. Where the package is missing or has
no such network, the class comes from the file job["reference"], if there is one.
"""

import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np  # noqa: E402

from mixjax.export import families  # noqa: E402

MISSING = 3  # the exit code when there is nothing to load the file into


class Side(NamedTuple):
    """The network with the weights of the file.

    outputs: (net, images [B, C, H, W]) -> {name: tensor}. title: whose class it is.
    """

    net: object
    outputs: Callable
    title: str


class Missing(Exception):
    """There is no class for this file; the text says what to install."""


def main(folder: Path) -> int:
    """Does the job in `folder`; returns the exit code."""
    try:
        import torch
    except ImportError:
        print("torch is not installed; pip install torch", file=sys.stderr)
        return MISSING
    torch.set_grad_enabled(False)
    job = json.loads((folder / "job.json").read_text())
    try:
        side = build(job)
    except Missing as error:
        print(f"{error}", file=sys.stderr)
        return MISSING
    for i in range(job["batches"]):
        images = torch.from_numpy(np.load(folder / f"pictures_{i}.npy"))
        outputs = side.outputs(side.net, images)
        arrays = {name: x.float().numpy() for name, x in outputs.items()}
        np.savez(folder / f"result_{i}.npz", **arrays)
    report = {"network": side.title, "torch": torch.__version__}
    (folder / "report.json").write_text(json.dumps(report))
    return 0


def build(job: dict) -> Side:
    """The class for the job, with the file's weights; Missing if there is none."""
    if job["to"] == "hf":
        return from_transformers(job)
    try:
        side = from_package(job)
    except ImportError as error:
        why = f"{job['to']} is not installed"
        side = from_reference(job, why, f"{error}; pip install {job['to']}")
    except families.NoSuchNetwork as error:
        side = from_reference(job, f"{error}", f"{error}")
    # strict: a tensor that is missing or too many is an error.
    side.net.load_state_dict(weights_of(job), strict=True)
    side.net.eval()
    return side


def from_package(job: dict) -> Side:
    """The class of timm or torchvision, which the family's file knows how to make."""
    import torch

    to, model = job["to"], job["model"]
    if to not in ("timm", "torchvision"):
        raise families.NoSuchNetwork(f"no installed package has {to}'s network")
    importlib.import_module(to)  # first, since a family's file takes seconds
    library = families.find(model["encoder"]["name"]).torch.get(to)
    if library is None:
        name = model["encoder"]["name"]
        raise families.NoSuchNetwork(f"{name} is not compared with {to}'s network")
    net = library.build(torch, model, job["stem"])
    outputs = lambda net, images: library.outputs(net, images, model)
    return Side(net, outputs, f"{to}'s {type(net).__name__}")


def from_reference(job: dict, why: str, advice: str) -> Side:
    """The class of the file job["reference"].

    why: it is used, for the title. advice: for Missing, if there is no such file.
    """
    if not job["reference"]:
        raise Missing(advice)
    path = Path(job["reference"])
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    net = module.build(job["to"], job["model"], job["stem"])
    title = f"{path.parent.name}/{path.name}, since {why}"
    return Side(net, lambda net, images: net.outputs(images), title)


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


# --- transformers ----------------------------------------------------------------


def from_transformers(job: dict) -> Side:
    try:
        net = transformers(Path(job["file"]).parent).eval()
    except ImportError as error:
        raise Missing(f"{error}; pip install transformers") from error
    name = type(net).__name__
    outputs = lambda net, images: hf_outputs(net, images, name)
    return Side(net, outputs, f"transformers' {name}")


def transformers(folder: Path):
    """The class that config.json names, loaded strictly from its folder."""
    import transformers as hf

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    options = {"add_pooling_layer": False} if name == "ViTModel" else {}
    hf.logging.set_verbosity_error()
    net, info = getattr(hf, name).from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise RuntimeError(f"{name} does not take the file as it is: {wrong}")
    return net


def hf_outputs(net, images, name: str) -> dict:
    """{name: tensor} of what a class of transformers returns, with our names."""
    import torch

    if name == "ViTMAEForPreTraining":
        # Keep every patch, in its order, so that all of the output can be compared.
        net.config.mask_ratio = net.vit.embeddings.config.mask_ratio = 0.0
        length = net.vit.embeddings.patch_embeddings.num_patches
        noise = torch.arange(length).float().expand(len(images), -1)
        prediction = net(images, noise=noise, output_hidden_states=True).logits
        tokens = net.vit(images, noise=noise).last_hidden_state
        return {"tokens": tokens, "prediction": prediction}
    if name.endswith("ForMaskedImageModeling"):
        return {"prediction": net(images).reconstruction.permute(0, 2, 3, 1)}
    if name.endswith("ForImageClassification"):
        return {"logits": net(images).logits}
    last = net(images).last_hidden_state
    return {"tokens": last} if name == "ViTModel" else {"flat_map": last}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(Path(sys.argv[1])))
