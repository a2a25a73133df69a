"""The configurations for Detectron2 and mmsegmentation: complete, and as the page says.

Neither framework is here. YAML is read with flax's PyYAML, mmsegmentation's files are
plain Python, and Detectron2's lazy ones run on stand-ins
(tests/support/detectron2_standin.py).
"""

import ast
import re
import shlex
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from downstream import weights
from mixjax import paper_tables
from mixjax.paper_tables import commands_of_rows
from tests.support import detectron2_standin, tiny

FOLDER = tiny.ROOT / "downstream"
PAGE = (FOLDER / "README.md").read_text()
PYTHON = sorted(FOLDER.rglob("*.py"))
D2, MMSEG = FOLDER / "detectron2", FOLDER / "mmsegmentation"

# --- settings ------------------------------------------------------------------------

SHORT_VOC = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
C4 = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "INPUT.FORMAT": "RGB",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_METHOD": "linear",
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
}
VOC = C4 | {
    "MODEL.MASK_ON": False,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
    "DATASETS.TEST": ["voc_2007_test"],
    "INPUT.MIN_SIZE_TRAIN": SHORT_VOC,
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.STEPS": [18000, 22000],
    "SOLVER.WARMUP_ITERS": 100,
}
COCO_1X = C4 | {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.WARMUP_ITERS": 1000,
}
COCO_2X = COCO_1X | {"SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": [120000, 160000]}

VITDET = {
    "model._base_": "common/models/mask_rcnn_vitdet.py",
    "model.backbone.square_pad": 1024,
    "model.backbone.out_channels": 256,
    "model.backbone.scale_factors": (4.0, 2.0, 1.0, 0.5),
    "model.backbone.norm": "LN",
    "model.backbone.net.img_size": 1024,
    "model.backbone.net.patch_size": 16,
    "model.backbone.net.embed_dim": 768,
    "model.backbone.net.depth": 12,
    "model.backbone.net.num_heads": 12,
    "model.backbone.net.drop_path_rate": 0.1,
    "model.backbone.net.window_size": 14,
    "model.backbone.net.residual_block_indexes": [],
    "model.backbone.net.use_rel_pos": True,
    "model.proposal_generator.head.conv_dims": [-1, -1],
    "model.proposal_generator.pre_nms_topk": (2000, 1000),
    "model.proposal_generator.post_nms_topk": (1000, 1000),
    "model.roi_heads.box_head.conv_dims": [256] * 4,
    "model.roi_heads.box_head.fc_dims": [1024],
    "model.roi_heads.box_head.conv_norm": "LN",
    "model.roi_heads.mask_head.conv_norm": "LN",
    "model.roi_heads.batch_size_per_image": 512,
    "model.roi_heads.positive_fraction": 0.25,
    "dataloader._base_": "common/data/coco.py",
    "dataloader.train.total_batch_size": 64,
    "dataloader.train.mapper.image_format": "RGB",
    "dataloader.train.mapper.recompute_boxes": True,
    "dataloader.train.mapper.augmentations.0._target_": "RandomFlip",
    "dataloader.train.mapper.augmentations.1._target_": "ResizeScale",
    "dataloader.train.mapper.augmentations.1.min_scale": 0.1,
    "dataloader.train.mapper.augmentations.1.max_scale": 2.0,
    "dataloader.train.mapper.augmentations.1.target_height": 1024,
    "dataloader.train.mapper.augmentations.1.target_width": 1024,
    "dataloader.train.mapper.augmentations.2._target_": "FixedSizeCrop",
    "dataloader.train.mapper.augmentations.2.crop_size": (1024, 1024),
    "dataloader.train.mapper.augmentations.2.pad": False,
    "dataloader.test.mapper.augmentations.0._target_": "ResizeShortestEdge",
    "dataloader.test.mapper.augmentations.0.short_edge_length": 1024,
    "dataloader.test.mapper.augmentations.0.max_size": 1024,
    "train.max_iter": 184375,
    "train.amp.enabled": True,
    "lr_multiplier.scheduler.values": [1.0, 0.1, 0.01],
    "lr_multiplier.scheduler.milestones": [163889, 177546],
    "lr_multiplier.scheduler.num_updates": 184375,
    "lr_multiplier.warmup_length": 250 / 184375,
    "lr_multiplier.warmup_factor": 0.001,
    "optimizer.lr": 1e-4,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 0.1,
    "optimizer.params.weight_decay_norm": 0.0,
    "optimizer.params.overrides": {"pos_embed": {"weight_decay": 0.0}},
}


def stages(field: str, values) -> dict:
    return {f"model.roi_heads.{field}".replace("*", f"{i}"): v for i, v in values}


STDS = [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]
WEIGHTS = [(1 / xy, 1 / xy, 1 / wh, 1 / wh) for xy, wh in STDS]
EVERY = range(3)
CASCADE = {
    "model._base_": "common/models/mask_rcnn_fpn.py",
    "model.input_format": "RGB",
    "model.pixel_mean": [123.675, 116.28, 103.53],
    "model.pixel_std": [58.395, 57.12, 57.375],
    "model.backbone.out_channels": 256,
    "model.backbone.norm": "",
    "model.backbone.bottom_up._target_": "ViTNeck",
    "model.backbone.bottom_up.width": 768,
    "model.backbone.bottom_up.depth": 12,
    "model.backbone.bottom_up.heads": 12,
    "model.backbone.bottom_up.drop_path": 0.2,
    "model.backbone.bottom_up.out_blocks": (3, 5, 7, 11),
    "model.backbone.bottom_up.table": (42, 68),
    "model.backbone.bottom_up.patch": 16,
    "model.backbone.bottom_up.neck_norm": "SyncBN",
    "model.proposal_generator.anchor_matcher._target_": "FlooredMatcher",
    "model.proposal_generator.anchor_matcher.floor": 0.3,
    "model.proposal_generator.anchor_matcher.thresholds": [0.3, 0.7],
    "model.proposal_generator.anchor_boundary_thresh": 0,
    "model.proposal_generator.smooth_l1_beta": 1 / 9,
    "model.proposal_generator.pre_nms_topk": (2000, 1000),
    "model.proposal_generator.post_nms_topk": (2000, 1000),
    "model.roi_heads.stage_weights": [1.0, 0.5, 0.25],
    "model.roi_heads.batch_size_per_image": 512,
    "model.roi_heads.positive_fraction": 0.25,
    **stages("box_heads.*.conv_dims", ((i, [256] * 4) for i in EVERY)),
    **stages("box_heads.*.fc_dims", ((i, [1024]) for i in EVERY)),
    **stages("box_heads.*.conv_norm", ((i, "SyncBN") for i in EVERY)),
    **stages("box_predictors.*.cls_agnostic_bbox_reg", ((i, False) for i in EVERY)),
    **stages("box_predictors.*.box_reg_loss_type", ((i, "giou") for i in EVERY)),
    **stages("box_predictors.*.loss_weight.loss_box_reg", ((i, 10.0) for i in EVERY)),
    **stages("box_predictors.*.test_score_thresh", ((i, 0.05) for i in EVERY)),
    **stages("box_predictors.*.box2box_transform.weights", enumerate(WEIGHTS)),
    **stages("proposal_matchers.*.thresholds", enumerate([[0.5], [0.6], [0.7]])),
    **stages("mask_heads.*.conv_dims", ((i, [256] * 5) for i in EVERY)),
    **stages("mask_heads.*.conv_norm", ((i, "") for i in EVERY)),
    "dataloader.train.total_batch_size": 16,
    "dataloader.train.mapper.image_format": "RGB",
    "dataloader.train.mapper.augmentations.0._target_": "RandomFlip",
    "dataloader.train.mapper.augmentations.1._target_": "RandomApply",
    "dataloader.train.mapper.augmentations.1.prob": 0.5,
    "dataloader.train.mapper.augmentations.1.tfm_or_aug.augs.0": {
        "_target_": "ResizeShortestEdge",
        "short_edge_length": (400, 500, 600),
        "max_size": 1333,
        "sample_style": "choice",
    },
    "dataloader.train.mapper.augmentations.1.tfm_or_aug.augs.1": {
        "_target_": "RandomCrop",
        "crop_type": "absolute_range",
        "crop_size": (384, 600),
    },
    "dataloader.train.mapper.augmentations.2.short_edge_length": tuple(SHORT_VOC),
    "dataloader.train.mapper.augmentations.2.max_size": 1333,
    "dataloader.test.mapper.augmentations.0.short_edge_length": 800,
    "dataloader.test.mapper.augmentations.0.max_size": 1333,
    "train.max_iter": 12 * 7330,
    "train.amp.enabled": True,
    "lr_multiplier.scheduler.values": [1.0, 0.1, 0.01],
    "lr_multiplier.scheduler.milestones": [9 * 7330, 11 * 7330],
    "lr_multiplier.warmup_length": 500 / (12 * 7330),
    "lr_multiplier.warmup_factor": 0.001,
    "optimizer.lr": 1e-4,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 0.05,
    "optimizer.params.weight_decay_norm": 0.0,
    "optimizer.params.weight_decay_bias": 0.0,
}
CASCADE_L = CASCADE | {
    "model.backbone.bottom_up.width": 1024,
    "model.backbone.bottom_up.depth": 24,
    "model.backbone.bottom_up.heads": 16,
    "model.backbone.bottom_up.out_blocks": (7, 11, 15, 23),
}

UPERNET = {
    "model.data_preprocessor.size": (512, 512),
    "model.data_preprocessor.mean": [123.675, 116.28, 103.53],
    "model.data_preprocessor.std": [58.395, 57.12, 57.375],
    "model.data_preprocessor.bgr_to_rgb": True,
    "model.data_preprocessor.pad_val": 0,
    "model.data_preprocessor.seg_pad_val": 255,
    "model.backbone.img_size": (512, 512),
    "model.backbone.patch_size": 16,
    "model.backbone.embed_dims": 768,
    "model.backbone.num_layers": 12,
    "model.backbone.num_heads": 12,
    "model.backbone.init_values": 1.0,
    "model.backbone.drop_path_rate": 0.1,
    "model.backbone.out_indices": [3, 5, 7, 11],
    "model.backbone.final_norm": False,
    "model.backbone.norm_cfg.eps": 1e-6,
    "model.neck.embed_dim": 768,
    "model.neck.rescales": [4, 2, 1, 0.5],
    "model.neck.norm_cfg.type": "SyncBN",
    "model.decode_head.in_channels": [768] * 4,
    "model.decode_head.in_index": [0, 1, 2, 3],
    "model.decode_head.channels": 768,
    "model.decode_head.pool_scales": (1, 2, 3, 6),
    "model.decode_head.dropout_ratio": 0.1,
    "model.decode_head.num_classes": 150,
    "model.decode_head.norm_cfg.type": "SyncBN",
    "model.decode_head.align_corners": False,
    "model.decode_head.loss_decode.loss_weight": 1.0,
    "model.decode_head.loss_decode.avg_non_ignore": False,
    "model.auxiliary_head.in_channels": 768,
    "model.auxiliary_head.in_index": 2,
    "model.auxiliary_head.channels": 256,
    "model.auxiliary_head.num_convs": 1,
    "model.auxiliary_head.concat_input": False,
    "model.auxiliary_head.dropout_ratio": 0.1,
    "model.auxiliary_head.num_classes": 150,
    "model.auxiliary_head.norm_cfg.type": "SyncBN",
    "model.auxiliary_head.align_corners": False,
    "model.auxiliary_head.loss_decode.loss_weight": 0.4,
    "model.auxiliary_head.loss_decode.avg_non_ignore": False,
    "model.test_cfg.mode": "slide",
    "model.test_cfg.crop_size": (512, 512),
    "model.test_cfg.stride": (256, 256),
    "train_dataloader.batch_size": 2,
    "train_dataloader.dataset.pipeline.1.reduce_zero_label": True,
    "train_dataloader.dataset.pipeline.2.scale": (2048, 512),
    "train_dataloader.dataset.pipeline.2.ratio_range": (0.5, 2.0),
    "train_dataloader.dataset.pipeline.2.keep_ratio": True,
    "train_dataloader.dataset.pipeline.3.crop_size": (512, 512),
    "train_dataloader.dataset.pipeline.3.cat_max_ratio": 0.75,
    "train_dataloader.dataset.pipeline.4.prob": 0.5,
    "train_dataloader.dataset.pipeline.5.brightness_delta": 32,
    "train_dataloader.dataset.pipeline.5.contrast_range": (0.5, 1.5),
    "train_dataloader.dataset.pipeline.5.saturation_range": (0.5, 1.5),
    "train_dataloader.dataset.pipeline.5.hue_delta": 18,
    "train_cfg.max_iters": 160000,
    "optim_wrapper.type": "AmpOptimWrapper",
    "optim_wrapper.optimizer.type": "AdamW",
    "optim_wrapper.optimizer.lr": 1e-4,
    "optim_wrapper.optimizer.betas": (0.9, 0.999),
    "optim_wrapper.optimizer.weight_decay": 0.05,
    "optim_wrapper.constructor": "LearningRateDecayOptimizerConstructor",
    "optim_wrapper.paramwise_cfg.num_layers": 12,
    "optim_wrapper.paramwise_cfg.decay_rate": 0.65,
    "optim_wrapper.paramwise_cfg.decay_type": "layer_wise",
    "param_scheduler.0.type": "LinearLR",
    "param_scheduler.0.start_factor": 1e-6,
    "param_scheduler.0.end": 1500,
    "param_scheduler.1.type": "PolyLR",
    "param_scheduler.1.power": 1.0,
    "param_scheduler.1.eta_min": 0.0,
    "param_scheduler.1.begin": 1500,
    "param_scheduler.1.end": 160000,
}
UPERNET_L = UPERNET | {
    "model.backbone.embed_dims": 1024,
    "model.backbone.num_layers": 24,
    "model.backbone.num_heads": 16,
    "model.backbone.drop_path_rate": 0.2,
    "model.backbone.out_indices": [7, 11, 15, 23],
    "model.neck.embed_dim": 1024,
    "model.decode_head.in_channels": [1024] * 4,
    "model.decode_head.channels": 1024,
    "model.auxiliary_head.in_channels": 1024,
    "optim_wrapper.paramwise_cfg.num_layers": 24,
    "optim_wrapper.paramwise_cfg.decay_rate": 0.75,
}
MIXEDAE = {"optim_wrapper.optimizer.lr": 3e-4, "model.test_cfg.stride": (341, 341)}
SETTINGS = {
    "detectron2/voc_faster_rcnn_c4.yaml": VOC,
    "detectron2/coco_mask_rcnn_c4_1x.yaml": COCO_1X,
    "detectron2/coco_mask_rcnn_c4_2x.yaml": COCO_2X,
    "detectron2/mask_rcnn_vitdet_b.py": VITDET,
    "detectron2/cascade_mask_rcnn_vitb_1x.py": CASCADE,
    "detectron2/cascade_mask_rcnn_vitl_1x.py": CASCADE_L,
    "mmsegmentation/upernet_mae_vitb.py": UPERNET,
    "mmsegmentation/upernet_mae_vitl.py": UPERNET_L,
    "mmsegmentation/upernet_mixedae_vitb.py": UPERNET | MIXEDAE,
    "mmsegmentation/upernet_mixedae_vitl.py": UPERNET_L | MIXEDAE,
}


# --- reading -------------------------------------------------------------------------


def merged(below: dict, above: dict) -> dict:
    """`above` over `below`, section by section, as both frameworks do."""
    both = dict(below)
    for k, v in above.items():
        whole = not (isinstance(v, dict) and isinstance(both.get(k), dict))
        both[k] = v if whole else merged(both[k], v)
    return both


def read_yaml(path) -> dict:
    found = yaml.safe_load(path.read_text())
    above = found.pop("_BASE_", None)
    return merged(read_yaml(path.parent / above), found) if above else found


def read_mmseg(path) -> dict:
    found = {}
    exec(compile(path.read_text(), str(path), "exec"), found)
    found.pop("__builtins__")
    for name in found.pop("_base_"):
        if "::" not in name:  # of mmsegmentation itself: what is set again here
            found = merged(read_mmseg(path.parent / name), found)
    return found


def read(name: str) -> dict:
    path = FOLDER / name
    if path.suffix == ".yaml":
        return read_yaml(path)
    return read_mmseg(path) if path.parent == MMSEG else detectron2_standin.read(path)


# --- the files -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_there(name):
    config = read(name)
    for path, value in SETTINGS[name].items():
        assert detectron2_standin.at(config, path) == value, path


def test_layers_decay_as_deep_as_they_are():
    """(rate, blocks) that the lazy configs give to the function of layer decay."""
    for name, share in [
        ("mask_rcnn_vitdet_b", {"lr_decay_rate": 0.7, "num_layers": 12}),
        ("cascade_mask_rcnn_vitb_1x", {"decay": 0.75, "depth": 12}),
        ("cascade_mask_rcnn_vitl_1x", {"decay": 0.75, "depth": 24}),
    ]:
        config = detectron2_standin.read(D2 / f"{name}.py")
        assert config.optimizer.params.lr_factor_func.keywords == share


def test_which_blocks_of_vitdet_see_all():
    net = detectron2_standin.read(D2 / "mask_rcnn_vitdet_b.py").model.backbone.net
    assert set(range(12)) - set(net.window_block_indexes) == {2, 5, 8, 11}


def test_rates_of_layers():
    """vit_neck.py needs Detectron2, but the function does not."""
    tree = ast.parse((D2 / "vit_neck.py").read_text())
    tree.body = [n for n in tree.body if getattr(n, "name", "") == "rate_share"]
    names = {}
    exec(compile(tree, "vit_neck.py", "exec"), names)
    share = lambda name: names["rate_share"](name, decay=0.75, depth=12)
    inside = "backbone.bottom_up."
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert share(inside + name) == pytest.approx(0.75**13)
    assert share(inside + "blocks.0.norm1.bias") == pytest.approx(0.75**12)
    assert share(inside + "blocks.11.mlp.fc2.weight") == 0.75
    for name in ("necks.res2.0.weight", "necks.res3.bias"):
        assert share(inside + name) == 1
    assert share("backbone.fpn_lateral2.weight") == share("roi_heads.x.0.fc1.bias") == 1


def test_every_config_has_its_settings_listed():
    found = {p for p in FOLDER.rglob("*.yaml")} | set(MMSEG.glob("*.py"))
    found |= {p for p in D2.glob("*.py") if "LazyCall" in p.read_text()}
    found |= set(D2.glob("*_1x.py"))
    names = {str(p.relative_to(FOLDER)) for p in found}
    assert names - {"detectron2/base_c4.yaml"} == SETTINGS.keys()


FRAMEWORK = {"detectron2", "fvcore", "torch", "safetensors"}
OURS = {"extra_norm", "downstream"}


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: p.name)
def test_imports_are_the_frameworks_own(path):
    tree = ast.parse(path.read_text())
    compile(tree, str(path), "exec")
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert (path.parent / f"{node.module}.py").exists()
                continue
            names = [node.module]
            if node.module.startswith("downstream."):
                file = node.module.replace(".", "/") + ".py"
                defined = ast.parse((tiny.ROOT / file).read_text()).body
                given = {getattr(n, "name", None) for n in defined}
                assert {alias.name for alias in node.names} <= given
        tops = {name.partition(".")[0] for name in names}
        assert tops <= FRAMEWORK | OURS | sys.stdlib_module_names


def test_the_head_of_the_configs_is_registered():
    tree = ast.parse((D2 / "extra_norm.py").read_text())
    (head,) = (n for n in tree.body if isinstance(n, ast.ClassDef))
    assert head.name == C4["MODEL.ROI_HEADS.NAME"]
    assert "register" in ast.unparse(head.decorator_list[0])


# --- weights -------------------------------------------------------------------------


def vit(width=4, depth=2, side=14) -> dict:
    """A ViT with names of timm, and what a checkpoint has besides."""
    found = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side * side, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (3, width),
        "mask_token": (1, 1, width),
        "decoder_blocks.0.attn.qkv.weight": (3 * width, width),
    }
    for i in range(depth):
        block = {"norm1": 1, "norm2": 1, "attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4}
        for name, times in block.items():
            found[f"blocks.{i}.{name}.weight"] = (times * width, width)
            found[f"blocks.{i}.{name}.bias"] = (times * width,)
    return {k: torch.randn(shape) for k, shape in found.items()}


def made(tmp_path, monkeypatch, target, tensors):
    save_file(tensors, tmp_path / "vit.safetensors")
    out = tmp_path / "vit.pth"
    words = ["weights.py", str(tmp_path / "vit.safetensors"), str(out)]
    monkeypatch.setattr(sys, "argv", [*words, f"--for={target}"])
    weights.main()
    return torch.load(out, weights_only=True)


def test_weights_for_vitdet(tmp_path, monkeypatch):
    given = vit()
    found = made(tmp_path, monkeypatch, "vitdet", given)["model"]
    kept = {k for k in given if k.startswith(("blocks", "patch_embed", "pos_embed"))}
    assert found.keys() == {f"backbone.net.{k}" for k in kept}
    for name in kept:
        torch.testing.assert_close(found[f"backbone.net.{name}"], given[name])


def test_weights_for_the_cascade(tmp_path, monkeypatch):
    given = vit()
    found = made(tmp_path, monkeypatch, "cascade", given)["model"]
    inside = "backbone.bottom_up."
    assert found[f"{inside}cls_token"].equal(given["cls_token"])
    assert not [k for k in found if "norm.weight" == k.removeprefix(inside)]
    table = found[f"{inside}pos_embed"]
    assert table.shape == (1, 1 + 42 * 68, 4)
    assert table[:, 0].equal(given["pos_embed"][:, 0])
    model = detectron2_standin.read(D2 / "cascade_mask_rcnn_vitb_1x.py").model
    assert model.backbone.bottom_up.table == weights.TABLE


def test_a_resized_table_keeps_its_rows_and_columns():
    """A table whose first feature is the row and whose second is the column."""
    rows, columns = torch.meshgrid(*[torch.arange(14.0)] * 2, indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).reshape(1, 196, 2)
    table = torch.cat([torch.full((1, 1, 2), -9.0), grid], dim=1)
    found = weights.resized(table, (42, 68))
    assert (found[0, 0] == -9).all()
    found = found[0, 1:].reshape(42, 68, 2)
    close = lambda x, y: (x - y).abs().max() < 0.1  # PyTorch's cubic is not exact
    row = (torch.arange(42) + 0.5) * 14 / 42 - 0.5
    column = (torch.arange(68) + 0.5) * 14 / 68 - 0.5
    assert close(found[3:-3, :, 0], row[3:-3, None])
    assert close(found[:, 3:-3, 1], column[3:-3])


def test_weights_for_mmsegmentation(tmp_path, monkeypatch):
    given = vit(depth=1)
    found = made(tmp_path, monkeypatch, "mmsegmentation", given)["state_dict"]
    names = {
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "patch_embed.projection.weight": "patch_embed.proj.weight",
        "patch_embed.projection.bias": "patch_embed.proj.bias",
    }
    block = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1"}
    block |= {"attn.qkv": "attn.qkv", "attn.proj": "attn.proj"}
    for theirs, ours in block.items():
        for kind in ("weight", "bias"):
            names[f"layers.0.{theirs}.{kind}"] = f"blocks.0.{ours}.{kind}"
    assert found.keys() == names.keys()
    assert all(found[k].equal(given[v]) for k, v in names.items())
    second = weights.mmsegmentation({"blocks.1.mlp.fc2.bias": torch.zeros(1)})
    assert set(second["state_dict"]) == {"layers.1.ffn.layers.1.bias"}


def test_what_is_no_vit_is_refused(tmp_path, monkeypatch):
    given = vit()
    del given["cls_token"]
    with pytest.raises(SystemExit, match="no ViT of MAE's form, cls_token missing"):
        made(tmp_path, monkeypatch, "vitdet", given)
    assert not (tmp_path / "vit.pth").exists()


# --- the page ------------------------------------------------------------------------

BLOCKS = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "downstream/" in line or "mixjax" in line
]


def test_commands_name_files_that_are_there():
    named = {w for c in COMMANDS for w in c if w.startswith("downstream/")}
    assert named and all((tiny.ROOT / name).is_file() for name in named)
    trained = {w.removeprefix("downstream/") for w in named}
    assert SETTINGS.keys() <= trained


def test_files_of_the_table_are_there():
    listed = set(re.findall(r"^\| `([\w/.]+)` \|", PAGE, flags=re.MULTILINE))
    assert listed == SETTINGS.keys()


def test_commands_make_what_the_configs_read():
    """A file of weights that a command reads is one that another writes, but for L."""
    written = {w.removeprefix("--out=") for c in COMMANDS for w in c if "--out=" in w}
    written |= {c[3] for c in COMMANDS if "downstream/weights.py" in c}
    read = {
        w.rpartition("=")[2]
        for c in COMMANDS
        for w in c
        if w.rpartition("=")[2].startswith("weights/") and "--out" not in w
    }
    assert {w.replace("vitl", "vitb") for w in read} == written
    targets_of = {w for c in COMMANDS for w in c if w.startswith("--for=")}
    assert targets_of == {f"--for={name}" for name in weights.FOR}


DENSE = "detection_.*|instance_.*|.*segmentation_.*"
ROWS = {
    r["id"]: r for r in paper_tables.all_rows() if re.fullmatch(DENSE, r["protocol"])
}
REASONS = {name: commands_of_rows.plan(row).reason for name, row in ROWS.items()}


@pytest.mark.parametrize("name", ROWS)
def test_every_dense_row_is_on_the_page(name):
    """Its number is here, whether or not mixjax has a recipe for it."""
    cells = [
        c for line in PAGE.splitlines() if line[:1] == "|" for c in line.split("|")
    ]
    shown = [float(x) for c in cells for x in re.findall(r"\d+\.\d+", c)]
    assert ROWS[name]["value"] in shown


def test_most_dense_rows_have_a_recipe_of_our_own():
    assert len(ROWS) == 130
    assert sum(not reason for reason in REASONS.values()) == 102
