"""ImageNet-A and ImageNet-C of a fine-tuned run (MI-MAE, table 5).

    python -m mixjax.evaluate --workdir=RUN --evals=configs/robustness.py \\
        --config.evals.imagenet_a.folder=imagenet-a \\
        --config.evals.imagenet_c.folder=ImageNet-C
    variants: :only=both (a, c), :size=224

Both sets as their archives unpack: imagenet-a/<class>/*.jpg, and
ImageNet-C/<corruption>/<severity>/<class>/*.JPEG. MAE's README, ViT-B: 35.9 and an mCE
of 51.7.
"""

from configs import common
from configs.common import ConfigDict


def get_config(arg=""):
    v = common.arguments(arg, only="both", size=224)
    c, resize = ConfigDict(), round(v.size * 256 / 224)
    crop = f"decode_center({v.size}, resize_to={resize})"
    views = {"a": f"{crop} | normalize", "c": "decode | normalize"}
    if v.size != 224:
        views["c"] = f"decode_center({v.size}, resize_to={v.size}) | normalize"
    for which in common.choice("only", v.only, {"both": "ac", "a": "a", "c": "c"}):
        section = c[f"imagenet_{which}"] = ConfigDict()
        section.name = f"imagenet_{which}"
        section.every_epochs, section.at_start = 0.0, True
        section.folder = {"a": "imagenet-a", "c": "ImageNet-C"}[which]
        section.view = views[which]
    return c
