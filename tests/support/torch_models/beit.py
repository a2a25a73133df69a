"""A BEiT, which is built as a ViT."""

from tests.support.torch_models.vit import build

__all__ = ["build"]
