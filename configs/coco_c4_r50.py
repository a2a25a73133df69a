"""Mask R-CNN R50-C4 on COCO, 90k or 180k steps of 16 (MixMask table 7, Un-Mix 5b).

    python -m mixjax.main --config=configs/coco_c4_r50.py:schedule=1x \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :schedule=1x (MixMask, 4.8e18 FLOP) or :schedule=2x (Un-Mix, 9.5e18)

1x, boxes and masks: Un-Mix 36.25, 31.88; MixMask 36.42, 31.96. 2x, boxes: MoCo v2
40.9, with Un-Mix 41.2.
Departures: pictures lie on one square canvas, whose rest batch norms leave out; and
see mixjax/methods/detect.py.
"""

from configs import common, dense

SCHEDULES = {"1x": (90_000, (60.0, 80.0)), "2x": (180_000, (120.0, 160.0))}


def get_config(arg=""):
    v = common.arguments(arg, schedule="1x")
    how = common.choice("schedule", v.schedule, SCHEDULES)
    c = dense.c4(common.base(), dense.COCO, *how, warm=1.0)
    views = (
        dense.short_sides(640, 112),
        dense.whole_view(112),
    )
    c.data = dense.source("coco:coco", "train2017", "val2017", *views, 8)
    c.method.masks = dense.masks(0, 14)
    c.model.mask_head = dense.mask_head(dense.COCO, convs=0, norm_kind="none")
    c.evals = dense.scored("detection_coco", "coco", every_epochs=0.0)
    c.evals.detect.precise = 200
    return c
