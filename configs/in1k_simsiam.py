"""SimSiam on ImageNet-1K with a ResNet-50, alone or with a mixture.

    python -m mixjax.main --config=configs/in1k_simsiam.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

SimSiam, linear, 100 epochs: 68.1. 8 GPUs, about a day.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.large(siamese.simsiam_imagenet, arg, epochs=100)
