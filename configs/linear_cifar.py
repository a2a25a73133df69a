"""Linear probing on CIFAR-10 and other small sets.

    python -m mixjax.main --config=configs/linear_cifar.py:encoder=vit \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :encoder=resnet18 (swav, vit, or another of mixjax/models),
    :data=c10 (c100, stl, tiny)

As in SwAV's CIFAR code (Un-Mix's README: SwAV 84.9 to 91.5), a ViT with the batch norm
of MAE's probe. The probe on cached features of HTDT's code, by which most small
sets of the papers are measured, is configs/probe.py.
"""

from configs import common, supervised


def get_config(arg=""):
    arg, fields = common.parts_of(arg, "encoder")
    v = common.arguments(arg, encoder="resnet18", data="c10")
    return supervised.linear_small(v.data, v.encoder, fields["encoder"])
