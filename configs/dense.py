"""What the recipes of segmentation and detection share.

All start from config.init_from, the workdir of a pre-training run or a file of weights.
The papers count in steps: in these recipes an epoch of the schedule is a thousand
steps, and --config.steps=N makes the whole recipe that much shorter.
"""

from configs import common
from configs.common import ConfigDict

THOUSAND = 1000
ADE20K = 150  # classes
COCO = 80
VOC = 20
RATIOS = (0.5, 1.0, 2.0)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
STRIDES = (4, 8, 16, 32, 64)
TAPS = {"B": (3, 5, 7, 11), "L": (7, 11, 15, 23)}
GLOBAL = {"B": (2, 5, 8, 11), "L": (5, 11, 17, 23)}
DEPTHS = {"B": 12, "L": 24}


def counted(c: ConfigDict, steps: int, batch: int) -> ConfigDict:
    """Says how long a recipe is that its paper counts in steps."""
    c.steps, c.epochs, c.batch = steps, steps / THOUSAND, batch
    c.checkpoint.every_epochs = 5.0
    c.model = ConfigDict()
    c.model.precision = "bfloat16"
    c.model.norm = common.norm(groups=1)  # SyncBN
    return c


def source(where: str, split: str, eval_split: str, view: str, eval_view: str, batch):
    """Where scenes come from; the first operation of a view moves what they show."""
    c = common.data(where, split, eval_split)
    c.views, c.eval_view = (view,), eval_view
    c.eval_batch = batch
    return c


def vit(size: str, image_size: tuple[int, int], drop_path: float) -> ConfigDict:
    """A ViT with patches of 16 that was pre-trained on pictures of 224."""
    plain = common.vit(size, image_size, 16)
    c = ConfigDict()
    c.name = "vit_dense"
    c.image_size, c.channels, c.patch = image_size, 3, 16
    c.width, c.depth, c.heads = plain.width, plain.depth, plain.heads
    c.mlp_ratio, c.drop_path = 4.0, drop_path
    c.class_token, c.pretrained_grid = True, (14, 14)
    c.relative, c.window, c.global_blocks = "none", 0, ()
    c.layer_scale, c.taps = False, TAPS[size]
    c.remat = "none"
    return c


def layered(size: str, weight_decay: float, decay: float) -> ConfigDict:
    """AdamW with a rate that falls from layer to layer."""
    c = common.adamw(b2=0.999, weight_decay=weight_decay)
    c.layer_decay, c.layers = decay, (DEPTHS[size],)
    return c


# --- segmentation --------------------------------------------------------------------


def upernet(size: str, stride: int, base: float, decay: float, drop_path: float):
    """UperNet on a ViT, ADE20K in windows of 512, 160k steps of 16."""
    c = counted(common.base(), 160_000, 16)
    view = "segment_crop(512) | photometric | normalize"
    whole = "fit(512, longest=512, canvas=512) | normalize"
    c.data = source("ade20k:ADEChallengeData2016", "train", "val", view, whole, 16)
    c.model.encoder = vit(size, (512, 512), drop_path)
    c.model.neck = ConfigDict()
    c.model.uper_head = ConfigDict()
    c.model.uper_head.width = c.model.encoder.width
    c.model.uper_head.classes, c.model.uper_head.dropout = ADE20K, 0.1
    c.model.uper_head.scales, c.model.uper_head.remat = (1, 2, 3, 6), True
    c.model.fcn_head = ConfigDict()
    c.model.fcn_head.map, c.model.fcn_head.width = 2, 256
    c.model.fcn_head.classes, c.model.fcn_head.dropout = ADE20K, 0.1
    c.method = ConfigDict()
    c.method.name, c.method.auxiliary, c.method.over = "segment", 0.4, "all"
    c.optim = layered(size, 0.05, decay)
    c.schedule = common.warmup_polynomial(base, "none", warmup_epochs=1.5)
    c.evals = ConfigDict()
    c.evals.segment = sliding(512, stride, every_epochs=16.0)
    c.evals.pictures = common.pictures(every_epochs=4.0)
    return c


def sliding(crop: int, stride: int, every_epochs: float) -> ConfigDict:
    """mIoU of held-out pictures, whose short side becomes a window's."""
    c = ConfigDict()
    c.name = "segment"
    c.every_epochs, c.at_start = every_epochs, False
    c.protocol = "segmentation_ade20k"
    c.view = f"segment_fit({crop}, longest=2048) | normalize"
    c.crop, c.stride, c.at_once, c.examples = crop, stride, 8, 0
    return c


# --- detection -----------------------------------------------------------------------


def scored(protocol: str, metric: str, every_epochs: float) -> ConfigDict:
    """The evaluators of a detector. metric: "coco", "voc07" or "voc12"."""
    c = ConfigDict()
    c.detect = ConfigDict()
    c.detect.name = "detect"
    c.detect.every_epochs, c.detect.at_start = every_epochs, False
    c.detect.protocol, c.detect.metric = protocol, metric
    c.detect.examples, c.detect.precise = 0, 0
    c.pictures = common.pictures(every_epochs=max(every_epochs / 4, 1.0))
    return c


def pyramid_anchors() -> ConfigDict:
    """One size for each of five maps."""
    c = ConfigDict()
    c.strides, c.sizes = STRIDES, tuple((size,) for size in SIZES)
    c.ratios, c.offset = RATIOS, 0.0
    return c


def proposals(before: tuple[int, int], after: tuple[int, int]) -> ConfigDict:
    """The region proposal network's rules, for training and test, as detectron2's."""
    c = ConfigDict()
    c.low, c.high, c.low_quality, c.inside = 0.3, 0.7, 0.0, False
    c.samples, c.fraction, c.beta = 256, 0.5, 0.0
    c.before, c.after, c.threshold = before, after, 0.7
    return c


def regions(strides: tuple[int, ...], side: int) -> ConfigDict:
    """One stage on 512 regions."""
    c = ConfigDict()
    c.strides, c.side = strides, side
    c.thresholds, c.weights = (0.5,), ((10.0, 10.0, 5.0, 5.0),)
    c.loss_weights, c.loss_weight, c.loss = (1.0,), 1.0, "l1"
    c.samples, c.fraction = 512, 0.25
    c.resample, c.share_gradient = False, False
    return c


def cascaded(c: ConfigDict, form: str) -> ConfigDict:
    """Makes three stages of one; form: "mmdet" or "detectron2"."""
    c.thresholds = (0.5, 0.6, 0.7)
    steps = (1.0, 2.0, 3.0)
    c.weights = tuple((10.0 * s, 10.0 * s, 5.0 * s, 5.0 * s) for s in steps)
    mmdet = form == "mmdet"
    c.loss_weights = (1.0, 0.5, 0.25) if mmdet else (1.0, 1.0, 1.0)
    c.loss, c.loss_weight = ("giou", 10.0) if mmdet else ("l1", 1.0)
    c.resample, c.share_gradient = mmdet, not mmdet
    return c


def masks(pooled: int, side: int) -> ConfigDict:
    """Masks of the first stage's regions."""
    c = ConfigDict()
    c.pooled, c.side, c.every_stage = pooled, side, False
    return c


def test() -> ConfigDict:
    """What becomes of the heads' outputs at test."""
    c = ConfigDict()
    c.score, c.nms, c.count, c.candidates = 0.05, 0.5, 100, 4000
    c.average = "probabilities"
    return c


def rpn_head(convs: int, width: int, anchors: int) -> ConfigDict:
    """The convolutions of a region proposal network."""
    c = ConfigDict()
    c.convs, c.width, c.anchors = convs, width, anchors
    return c


def box_head(classes: int, convs: int, fcs: int, norm_kind: str) -> ConfigDict:
    """Convolutions of 256 and linear layers of 1024, then classes and boxes."""
    c = ConfigDict()
    c.convs, c.width, c.fcs, c.fc_width = convs, 256, fcs, 1024
    c.classes, c.agnostic, c.norm_kind = classes, False, norm_kind
    return c


def mask_head(classes: int, convs: int, norm_kind: str) -> ConfigDict:
    """Convolutions of 256 and a deconvolution, then a mask for each class."""
    c = ConfigDict()
    c.convs, c.width, c.classes, c.norm_kind = convs, 256, classes, norm_kind
    return c


def wide(width: int) -> ConfigDict:
    """A pyramid of so many channels."""
    c = ConfigDict()
    c.width = width
    return c


def detector(padding: str, anchors, rpn, boxes, masks, test) -> ConfigDict:
    """config.method of a detector."""
    c = ConfigDict()
    c.name, c.padding = "detect", padding
    c.anchors, c.rpn, c.boxes = anchors, rpn, boxes
    c.masks, c.test = masks, test
    return c


def vitdet(size: str, drop_path: float, decay: float) -> ConfigDict:
    """Mask R-CNN of ViTDet on COCO (Li et al., 2022): 100 epochs of 64 pictures.

    Norms of the pyramid and heads, biases and relative positions decay, too, as they do
    in detectron2's code; the transformer's own norms and its positions do not.
    """
    c = counted(common.base(), 184_375, 64)
    view = "large_jitter(1024, scale=(.1, 2.), objects=100, mask_side=112) | normalize"
    whole = "fit(1024, longest=1024, canvas=1024, objects=100, mask_side=112)"
    whole += " | normalize"
    c.data = source("coco:coco", "train2017", "val2017", view, whole, 8)
    encoder = vit(size, (1024, 1024), drop_path)
    encoder.class_token, encoder.relative = False, "decomposed"
    encoder.window, encoder.global_blocks = 14, GLOBAL[size]
    encoder.taps, encoder.remat = (DEPTHS[size] - 1,), "block"
    c.model.encoder, c.model.simple_pyramid = encoder, wide(256)
    c.model.rpn_head = rpn_head(2, 256, len(RATIOS))
    c.model.box_head = box_head(COCO, convs=4, fcs=1, norm_kind="layer")
    c.model.mask_head = mask_head(COCO, convs=4, norm_kind="layer")
    rules = proposals((2000, 1000), (1000, 1000))
    boxes, drawn = regions(STRIDES[:4], 7), masks(14, 28)
    c.method = detector("seen", pyramid_anchors(), rules, boxes, drawn, test())
    c.optim = layered(size, 0.1, decay)
    c.optim.decay_vectors = True
    c.optim.decay_exempt = ("encoder/.*norm", "encoder/pos_embed")
    epochs, warm = c.epochs, 0.25
    milestones = (epochs * 8 / 9, epochs * 26 / 27)  # 163,889 and 177,546
    c.schedule = common.warmup_steps(1e-4, "none", warm, milestones, 0.1)
    c.schedule.warmup_start = 1e-7
    c.evals = scored("detection_coco", "coco", every_epochs=18.4375)
    return c


def cascade(size: str, form: str, decay: float, drop_path: float) -> ConfigDict:
    """Cascade Mask R-CNN on a ViT as iBOT trains it (Zhou et al., 2022): 12 epochs.

    form: "mmdet" is iBOT's; "detectron2" has boxes of all classes together, no new
    sample between the stages and one head for masks.
    """
    c = common.base()
    c.epochs, c.batch = 12.0, 16
    c.model = ConfigDict()
    c.model.precision, c.model.norm = "bfloat16", common.norm(groups=1)
    sides = tuple(range(480, 801, 32))
    canvas = "longest=1333, canvas=1344, objects=100"
    view = f"short_side({sides}, {canvas}, mask_side=112, crop=True) | normalize"
    whole = whole_view(112)
    c.data = source("coco:coco", "train2017", "val2017", view, whole, 8)
    c.model.encoder = vit(size, (1344, 1344), drop_path)
    c.model.encoder.remat = "block"
    c.model.neck, c.model.fpn = ConfigDict(), wide(256)
    c.model.rpn_head = rpn_head(1, 256, len(RATIOS))
    mmdet = form == "mmdet"
    for tail in ("", "_2", "_3"):
        head = box_head(COCO, convs=4, fcs=1, norm_kind="batch")
        head.agnostic = not mmdet
        c.model[f"box_head{tail}"] = head
        if mmdet or not tail:
            c.model[f"mask_head{tail}"] = mask_head(COCO, convs=4, norm_kind="none")
    rules = proposals((2000, 1000), (2000, 1000))
    boxes, drawn = cascaded(regions(STRIDES[:4], 7), form), masks(14, 28)
    drawn.every_stage, last = mmdet, test()
    if mmdet:
        rules.beta, rules.inside, rules.low_quality = 1 / 9, True, 0.3
        last.average = "logits"
    c.method = detector("seen", pyramid_anchors(), rules, boxes, drawn, last)
    c.optim = layered(size, 0.05, decay)
    c.schedule = common.warmup_steps(1e-4, "none", 500 / 7329, (9.0, 11.0), 0.1)
    c.schedule.warmup_start = 1e-7
    c.evals = scored("detection_coco", "coco", every_epochs=4.0)
    return c


def c4(c: ConfigDict, classes: int, steps: int, milestones, warm: float) -> ConfigDict:
    """R-CNN on a ResNet-50 whose last stage runs on regions (MoCo's detection code).

    SyncBN everywhere, trained from the stem on, an extra norm behind the last stage.
    """
    c = counted(c, steps, 16)
    encoder = common.resnet(50, (1344, 1344), "imagenet")
    encoder.layers, encoder.widths = (3, 4, 6), (64, 128, 256)
    c.model.encoder = encoder
    c.model.rpn_head = rpn_head(1, 1024, len(SIZES) * len(RATIOS))
    c.model.res5 = ConfigDict()
    c.model.res5.block, c.model.res5.layers = "bottleneck", 3
    c.model.res5.width, c.model.res5.extra_norm = 512, True
    c.model.res5.remat = "block"
    c.model.box_head = box_head(classes, convs=0, fcs=0, norm_kind="none")
    anchors = ConfigDict()
    anchors.strides, anchors.sizes = (16,), (SIZES,)
    anchors.ratios, anchors.offset = RATIOS, 0.0
    rules = proposals((12000, 6000), (2000, 1000))
    c.method = detector(
        "left_out", anchors, rules, regions((16,), 14), ConfigDict(), test()
    )
    c.optim = common.sgd(1e-4)
    c.optim.decay_exempt = ("bn", "norm/")
    c.schedule = common.warmup_steps(0.02, "none", warm, milestones, 0.1)
    c.schedule.warmup_start = 2e-5
    return c


def whole_view(mask_side: int) -> str:
    """The test view of a short side of 800."""
    rest = f"longest=1333, canvas=1344, objects=100, mask_side={mask_side}"
    return f"fit(800, {rest}) | normalize"


def without_masks(c: ConfigDict) -> ConfigDict:
    """Makes a recipe learn and find boxes alone."""
    for name in [name for name in c.model if name.startswith("mask_head")]:
        del c.model[name]
    c.method.masks = ConfigDict()
    none = lambda view: view.replace("mask_side=112", "mask_side=0")
    c.data.views, c.data.eval_view = (none(c.data.views[0]),), none(c.data.eval_view)
    return c


def short_sides(lowest: int, mask_side: int) -> str:
    """The view of a C4 recipe: a short side drawn from `lowest` .. 800."""
    sides = tuple(range(lowest, 801, 32))
    rest = f"longest=1333, canvas=1344, objects=100, mask_side={mask_side}"
    return f"short_side({sides}, {rest}) | normalize"
