"""MixedAE, table A3: the same with a ViT-L."""

from functools import partial

from downstream.detectron2.vit_neck import rate_share

from .cascade_mask_rcnn_vitb_1x import (
    dataloader,  # noqa: F401
    lr_multiplier,  # noqa: F401
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.width = 1024
model.backbone.bottom_up.depth = 24
model.backbone.bottom_up.heads = 16
model.backbone.bottom_up.out_blocks = (7, 11, 15, 23)
train.init_checkpoint = "weights/vitl_cascade.pth"
train.output_dir = "runs/cascade_l"
optimizer.params.lr_factor_func = partial(rate_share, decay=0.75, depth=24)
