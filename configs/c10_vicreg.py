"""VICReg on CIFAR-10 with a ResNet-18, alone or with a mixture; no paper here has it.

    python -m mixjax.main --config=configs/c10_vicreg.py --workdir=...
    variants: :mixture=unmix (or another, docs/mixtures.md), :branches=both, :epochs=

In the frame of the SimCLR recipe, with VICReg's weights and an expander of 2048.
"""

from configs import common, siamese


def vicreg(name, epochs):
    c = siamese.htdt(name, epochs, batch=512)
    c.model.projector = common.projector((2048, 2048, 2048), True, "none")
    weights = dict(invariance=25.0, variance=25.0, covariance=1.0)
    c.method.objective = siamese.ConfigDict(dict(name="vicreg", **weights))
    c.method.pairing.pairs = "forward"
    return c


def get_config(arg=""):
    return siamese.recipe(vicreg, "c10", arg, epochs=1000)
