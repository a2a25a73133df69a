"""Lam's approach 1 on CIFAR-10 with a ResNet-18: the two views of an image mixed.

    python -m mixjax.main --config=configs/c10_lam_a1.py --workdir=...
    variants: :lam=.5 (a constant; area: the share outside the box), :epochs=1000

Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training", table 1:
90.15 by kNN (k = 200, T = 0.1; the table's head says 5-nn). One GPU; a step has twice
the passes of c10_moco.py. The code was never released, and the paper gives lam no
value: the code of approach 2 has the area.
"""

from configs import common, detmix


def get_config(arg=""):
    variant = common.arguments(arg, epochs=1000, lam="area")
    return detmix.regions(
        detmix.frame(variant.epochs),
        approach=1,
        lam=variant.lam,
        region_reverse="none",
        global_positive="region",
    )
