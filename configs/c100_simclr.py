"""SimCLR on CIFAR-100 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/c100_simclr.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix, table 3, linear, 1000 epochs: 66.83, with Un-Mix 68.83; 5-nn 56.56 and 58.82.
MixMask's table 5, linear: 67.11, Un-Mix 69.77, MixMask 69.22, both 70.04. HTDT's
recipe. One GPU, some hours.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.simclr, "c100", arg, epochs=1000)
