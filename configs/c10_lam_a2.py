"""Lam's approach 2 on CIFAR-10 with a ResNet-18: images mixed within the batch.

    python -m mixjax.main --config=configs/c10_lam_a2.py --workdir=...
    variants: :positive=region (the paper's third queue; key: two, as in the code),
    :reverse=consistent (paper), :lam=.5 (area), :epochs=1000

Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training", table 1:
89.97 by kNN (k = 200, T = 0.1; the table's head says 5-nn). One GPU; a step has twice
the passes of c10_moco.py. The reversed terms of regions pull different images together,
in the paper as in the code; :reverse=consistent mends that.
"""

from configs import common, detmix


def get_config(arg=""):
    variant = common.arguments(
        arg, epochs=1000, lam="area", reverse="paper", positive="key"
    )
    return detmix.regions(
        detmix.frame(variant.epochs),
        approach=2,
        lam=variant.lam,
        region_reverse=variant.reverse,
        global_positive=variant.positive,
    )
