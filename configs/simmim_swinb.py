"""SimMIM Swin-B at 192 px on ImageNet-1K (Xie et al., CVPR 2022).

    python -m mixjax.main --config=configs/simmim_swinb.py --workdir=...
    variants: :epochs=800

Expected: 84.0 fine-tuned at 224. About 49 H200-hours at 40 % of the peak.
Departures: bfloat16 instead of float16, without loss scaling.
"""

from configs import common, masked


def get_config(arg=""):
    variant = common.arguments(arg, epochs=800)
    encoder = common.swin("B", (192, 192), 6)
    return masked.simmim_imagenet(encoder, 192, variant.epochs)
