"""From a ViT that mixjax exported to a checkpoint of Detectron2 or mmsegmentation.

    python downstream/weights.py vit.safetensors vit.pth --for=vitdet

vit.safetensors is of `python -m mixjax.export --to=timm` or `--to=mae`. Taken over are
the blocks, the patch embedding, the class token and the position table; the last norm,
decoders and classifiers are left out, since no detector or segmentor here has them.
Needs torch and safetensors, in the environment of the framework.
"""

import argparse
import re

import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

ENCODER = r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\..*"
NEEDED = {"cls_token", "pos_embed", "patch_embed.proj.weight"}
NEEDED |= {"blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.bias"}
MMSEGMENTATION = (  # what mmsegmentation calls the same tensors
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.", "layers."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
TABLE = (42, 68)  # the position table of iBOT's detector: 672 x 1088 pixels


def encoder(tensors: dict) -> dict:
    """The tensors of the encoder; SystemExit if it is no ViT with a class token."""
    absent = sorted(NEEDED - tensors.keys())
    if absent:
        raise SystemExit(f"weights: no ViT of MAE's form, {', '.join(absent)} missing")
    return {k: v for k, v in tensors.items() if re.fullmatch(ENCODER, k)}


def resized(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[1, 1 + n * n, D] -> [1, 1 + h * w, D]; the class token's entry stays."""
    side = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def vitdet(tensors: dict) -> dict:
    """Names of Detectron2's ViT inside its pyramid, which has no class token."""
    del tensors["cls_token"]
    return {"model": {f"backbone.net.{k}": v for k, v in tensors.items()}}


def cascade(tensors: dict) -> dict:
    """Names of detectron2/vit_neck.py inside an FPN, with the larger table."""
    tensors["pos_embed"] = resized(tensors["pos_embed"], TABLE)
    return {"model": {f"backbone.bottom_up.{k}": v for k, v in tensors.items()}}


def mmsegmentation(tensors: dict) -> dict:
    """Names of mmsegmentation's backbone MAE, which resizes the table itself."""
    for theirs, to in MMSEGMENTATION:
        tensors = {re.sub(theirs, to, k): v for k, v in tensors.items()}
    return {"state_dict": tensors}


FOR = {"vitdet": vitdet, "cascade": cascade, "mmsegmentation": mmsegmentation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="safetensors of python -m mixjax.export")
    parser.add_argument("out", help="the .pth to write")
    parser.add_argument("--for", dest="target", choices=FOR, required=True)
    args = parser.parse_args()
    tensors = encoder(load_file(args.source))
    torch.save(FOR[args.target](tensors), args.out)
    print(f"{args.out}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
