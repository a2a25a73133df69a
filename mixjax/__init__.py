"""mixjax: self-supervised pre-training of vision backbones with image mixtures."""

__version__ = "0.1.0"
