"""MoCo v2 on ImageNet-1K with a ResNet-50, alone or with a mixture.

    python -m mixjax.main --config=configs/in1k_mocov2.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Linear, 200 epochs: MoCo v2 67.5, with Un-Mix 68.6 (Un-Mix, table 4), MixMask 69.18,
both 69.51, erasing 68.23 (MixMask, tables 3 to 5). 800 epochs: 71.1, with Un-Mix 71.8.
8 GPUs, about two days. The crop on the host is bilinear, as torchvision's.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.large(
        lambda epochs: siamese.moco_imagenet(2, epochs), arg, epochs=200
    )
