"""Lam's baseline, MoCo with CutMix on CIFAR-10 with a ResNet-18.

    python -m mixjax.main --config=configs/c10_lam_cutmix.py --workdir=...
    variants: :orders=one (the first order alone, as the text has it), :epochs=1000

Lam, "Leveraging Image Mixtures for Unsupervised Detection Pre-training", table 1:
91.31 by kNN (k = 200, T = 0.1; the table's head says 5-nn). One GPU. It is Un-Mix
without Mixup, in both orders, as in the code.
"""

from configs import common, detmix, siamese
from configs.common import ConfigDict


def get_config(arg=""):
    variant = common.arguments(arg, epochs=1000, orders="both")
    cutmix = ConfigDict(siamese.MIXTURES | {"mixture": "unmix"})
    c = detmix.frame(variant.epochs)
    known = {"both": "both", "one": "none"}
    c.method.pairing.reverse = common.choice("orders", variant.orders, known)
    return siamese.mix(c, cutmix, grid=2, probability=0.0)
