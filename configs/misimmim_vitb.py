"""MI-SimMIM ViT-B/16 at 224 px on ImageNet-1K (MI-MAE, ICLR 2025, table 1).

    python -m mixjax.main --config=configs/misimmim_vitb.py --workdir=...
    variants: :epochs=400 and, after commas, lam1=1, lam2=1, lam3=10, approx=1,
    gate=latch (instant, open)

Expected: 84.1 fine-tuned, 59.1 linear; +0.3 over SimMIM with ViT-B. The caption says
Swin-B but the table compares with SimMIM's numbers for ViT-B. About 76 H200-hours at
40 % of the peak.
Departures: the paper gives no rate or batch for it; SimMIM's at equal views.
"""

from configs import common, masked


def get_config(arg=""):
    encoder = common.beit("B", (224, 224), 16)
    return masked.misimmim(encoder, 224, arg, epochs=400)
