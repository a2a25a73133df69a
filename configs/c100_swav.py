"""SwAV on CIFAR-100, alone or with a mixture.

    python -m mixjax.main --config=configs/c100_swav.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix's README, linear, 200/400/600/800/1000 epochs: 57.9 64.5 65.7 67.2 67.5; with
Un-Mix 61.1 66.1 68.5 69.1 69.9. One GPU, some hours. The network is one of bottleneck
blocks with maps of 34 pixels, as in that code, not the ResNet-18 of the paper's text;
its numbers are the targets.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.swav_cifar, "c100", arg, epochs=200)
