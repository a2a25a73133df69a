"""SimSiam on CIFAR-100 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/c100_simsiam.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

MixMask, table 5, linear, 1000 epochs: 66.71, Un-Mix 70.02, MixMask 69.83, both 70.56;
table 9, kNN: 63.16, 66.45, 65.26, 66.69. The paper leaves the head open: this is
512-2048-128 with a last norm, predictor 512 wide, rate 0.03 x batch/256. One GPU, some
hours.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.simsiam_cifar, "c100", arg, epochs=1000)
