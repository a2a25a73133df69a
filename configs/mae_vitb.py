"""MAE ViT-B/16 on ImageNet-1K (He et al., CVPR 2022, table 3 and appendix A.1).

    python -m mixjax.main --config=configs/mae_vitb.py --workdir=...
    variants: :epochs=1600 (800, the ablations' length, is usual)

Expected, fine-tuned: 83.3 at 800, 83.6 at 1600 epochs; linear probe 68.0 at 1600.
About 42 H200-hours per 800 epochs at 40 % of the peak (1.2e20 operations at 1600).
Departures: bfloat16 instead of float16, without loss scaling.
"""

from configs import masked


def get_config(arg=""):
    """The recipe of the official code (PRETRAIN.md): 4096 images, 40 epochs warm-up."""
    return masked.mae("B", 16, arg, 800)
