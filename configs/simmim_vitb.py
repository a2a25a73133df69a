"""SimMIM ViT-B/16 at 224 px on ImageNet-1K (Xie et al., CVPR 2022).

    python -m mixjax.main --config=configs/simmim_vitb.py --workdir=...
    variants: :epochs=800

Expected: 83.8 fine-tuned, 56.7 linear. About 76 H200-hours at 40 % of the peak.
Departures: bfloat16 instead of float16, without loss scaling.
"""

from configs import common, masked


def get_config(arg=""):
    variant = common.arguments(arg, epochs=800)
    encoder = common.beit("B", (224, 224), 16)
    return masked.simmim_imagenet(encoder, 224, variant.epochs)
