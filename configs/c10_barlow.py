"""Barlow Twins on CIFAR-10 with a ResNet-18, alone or with a mixture; in no paper here.

    python -m mixjax.main --config=configs/c10_barlow.py --workdir=...
    variants: :mixture=NAME, any of mixjax/mixtures or "both"; :branches=both, :epochs=

Based on the SimCLR recipe, with the weight 0.0051 of the paper (Zbontar et al., ICML
2021) and a projector of 2048, a quarter of its 8192 for ImageNet.
"""

from configs import common, siamese


def barlow_twins(name, epochs):
    c = siamese.htdt(name, epochs, batch=512)
    c.model.projector = common.projector((2048, 2048, 2048), True, "none")
    fields = dict(name="barlow_twins", redundancy=0.0051)
    c.method.objective = siamese.ConfigDict(fields)
    c.method.pairing.pairs = "forward"  # the loss is symmetric: one direction is enough
    return c


def get_config(arg=""):
    return siamese.recipe(barlow_twins, "c10", arg, epochs=1000)
