"""Un-Mix's multi-scale MoCo v2 on ImageNet-1K, in our own form.

    python -m mixjax.main --config=configs/in1k_mocov2_multiscale.py --workdir=...
    variants: :mixture=mixmask (or another, docs/mixtures.md), :branches=both, :epochs=

Un-Mix, table 4, linear, 200 epochs: 69.8 against 68.6 at one scale; how is not said, so
this is no reproduction. Each step draws one of three resolutions, each with its queue.
8 GPUs, about two days.
"""

from configs import siamese


def get_config(arg=""):
    arg = ",".join(filter(None, ("mixture=unmix", arg)))
    c = siamese.large(lambda epochs: siamese.moco_imagenet(2, epochs), arg, epochs=200)
    method = c.method
    c.method = siamese.ConfigDict(dict(name="multiscale", method=method))
    c.method.resolutions = (160, 192, 224)
    return c
