"""What the recipes of Lam's pre-training share: MoCo on CIFAR-10, and its regions."""

from configs import siamese
from configs.common import ConfigDict


def frame(epochs: float) -> ConfigDict:
    """Asymmetric MoCo as in mix-ssl: bicubic crops, else as in MoCo's notebook.

    Rate 0.06 and decay 5e-4 are the code's; the paper's text has 3e-3 and 1e-4.
    """
    c = siamese.moco_cifar("c10", float(epochs), symmetric=False)
    c.data.views = tuple(v.replace("bilinear", "bicubic") for v in c.data.views)
    return c


def regions(
    c: ConfigDict, approach: int, lam: str, region_reverse: str, global_positive: str
) -> ConfigDict:
    """Turns a frame into approach 1 or 2; the fields: see mixjax/methods/detmix.py."""
    moco = c.method
    c.model.region_projector = ConfigDict(dict(width=c.model.projector.widths[-1]))
    m = c.method = ConfigDict(dict(name="detmix", approach=approach, lam=lam))
    m.region_reverse, m.global_positive = region_reverse, global_positive
    m.mixture = ConfigDict(dict(gamma=1.0, groups=1))
    for field in ("objective", "teacher", "shuffle", "evaluate"):
        m[field] = moco[field]
    return c
