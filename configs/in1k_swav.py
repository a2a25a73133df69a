"""SwAV on ImageNet-1K with a ResNet-50 and eight crops, alone or with a mixture.

    python -m mixjax.main --config=configs/in1k_swav.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

SwAV at batch 256, linear: 72.7 after 200 epochs, 74.3 after 400. 8 GPUs, several days.
No number with a mixture was published; the first large crop alone is mixed.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.large(siamese.swav_imagenet, arg, epochs=200)
