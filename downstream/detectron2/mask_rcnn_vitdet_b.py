"""MI-MAE, table 2: Mask R-CNN of ViTDet with a ViT-B, COCO, 100 epochs.

Detectron2's model, with the values that matter written out. 184375 steps of 64
pictures are 100 epochs of 118000; for E epochs scale max_iter and both milestones alike
and keep the 250 steps of warm-up. With fewer GPUs keep the batch of 64.
"""

from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

SIZE = 1024

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone.square_pad = SIZE
model.backbone.out_channels = 256
model.backbone.scale_factors = (4.0, 2.0, 1.0, 0.5)
model.backbone.norm = "LN"
model.backbone.net.img_size = SIZE
model.backbone.net.patch_size = 16
model.backbone.net.embed_dim = 768
model.backbone.net.depth = 12
model.backbone.net.num_heads = 12
model.backbone.net.drop_path_rate = 0.1
model.backbone.net.window_size = 14
model.backbone.net.window_block_indexes = [0, 1, 3, 4, 6, 7, 9, 10]  # others see all
model.backbone.net.residual_block_indexes = []
model.backbone.net.use_rel_pos = True
model.proposal_generator.head.conv_dims = [-1, -1]  # two 3 x 3 convolutions
model.proposal_generator.pre_nms_topk = (2000, 1000)
model.proposal_generator.post_nms_topk = (1000, 1000)
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = "LN"
model.roi_heads.mask_head.conv_norm = "LN"
model.roi_heads.batch_size_per_image = 512
model.roi_heads.positive_fraction = 0.25

# Large-scale jitter: first the flip, then any size, then one crop of SIZE if larger.
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.total_batch_size = 64
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(
        min_scale=0.1, max_scale=2.0, target_height=SIZE, target_width=SIZE
    ),
    L(T.FixedSizeCrop)(crop_size=(SIZE, SIZE), pad=False),
]
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.recompute_boxes = True  # tight around what the crop left
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=SIZE, max_size=SIZE),
]

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "weights/vitb_vitdet.pth"
train.output_dir = "runs/vitdet_b"
train.max_iter = 184375
train.amp.enabled = True
train.ddp.fp16_compression = True

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        milestones=[163889, 177546],
        num_updates=train.max_iter,
    ),
    warmup_length=250 / train.max_iter,
    warmup_factor=0.001,
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.betas = (0.9, 0.999)
optimizer.weight_decay = 0.1
optimizer.params.weight_decay_norm = 0.0  # of torch's norms; not of the pyramid's own
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
optimizer.params.lr_factor_func = partial(
    get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7
)
