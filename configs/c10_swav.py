"""SwAV on CIFAR-10, alone or with a mixture.

    python -m mixjax.main --config=configs/c10_swav.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix's README, linear, 200/400/600/800/1000 epochs: 84.9 88.8 90.1 90.8 91.5; with
Un-Mix 86.8 90.4 92.0 92.5 93.0. One GPU, some hours. The network is one of bottleneck
blocks with maps of 34 pixels, as in that code, not the ResNet-18 of the paper's text;
its numbers are the targets.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.swav_cifar, "c10", arg, epochs=200)
