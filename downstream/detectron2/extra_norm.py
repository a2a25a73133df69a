"""MoCo's RoI head on res5: a norm of its own after the last block (He et al., 2020).

The stage that a RoI goes through ends in a ReLU whose scale nothing holds. Fine-tuned
with trained norms everywhere it gets one more norm, over 2048 channels and without an
activation behind it; boxes and masks both read what comes out.
"""

from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Res5ROIHeads with a norm of MODEL.RESNETS.NORM behind res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels
