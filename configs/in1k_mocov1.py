"""MoCo v1 on ImageNet-1K with a ResNet-50, alone or with a mixture.

    python -m mixjax.main --config=configs/in1k_mocov1.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

MoCo, linear, 200 epochs: 60.6.
8 GPUs, about two days. The crop on the host is bilinear, as torchvision's.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.large(
        lambda epochs: siamese.moco_imagenet(1, epochs), arg, epochs=200
    )
