"""MI-MAE ViT-L/16 on ImageNet-1K (ICLR 2025, section 5.1).

    python -m mixjax.main --config=configs/mimae_vitl.py --workdir=...
    variants: :epochs=200 and, after commas, lam1=1, lam2=1, lam3=10, approx=1,
    ratio=.75, views=4 (0: as many as cover the image), masks=circular (independent),
    gate=latch (instant, open); configs/README.md has the paper's rows

Expected: no number in the paper.
200 epochs of 4 views are 800 of MAE: about 90 H200-hours at 40 % of the peak.
Departures: the rate is 2.4e-3, MAE's for as many views and steps; the paper's 1.5e-4
per 256 may also be read as 6e-4 (--config.schedule.base=1.5e-4).
"""

from configs import masked


def get_config(arg=""):
    return masked.mimae("L", arg, epochs=200)
