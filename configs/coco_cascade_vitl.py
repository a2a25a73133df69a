"""Cascade Mask R-CNN with a ViT-L on COCO, 12 epochs of 16 (MixedAE, table A3).

    python -m mixjax.main --config=configs/coco_cascade_vitl.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :form=mmdet, the cascade that iBOT trains, or :form=detectron2; :size=L

MAE 54.0 boxes, 46.3 masks; MixedAE 54.6, 47.1 (1600 epochs); 2.2e19 FLOP. The ViT-B of
iBOT's own recipe is :size=B. x 0.1 "at epochs 9 and 11", taken literally.
Departures: all pictures lie on one square canvas, so attention costs more than on
padded batches; drop-path is not in the paper: iBOT's; and see mixjax/methods/detect.py.
"""

from configs import common, dense


def get_config(arg=""):
    v = common.arguments(arg, form="mmdet", size="L")
    common.choice("form", v.form, {"mmdet": 0, "detectron2": 0})
    rate = common.choice("size", v.size, {"B": 0.1, "L": 0.2})
    return dense.cascade(v.size, v.form, 0.75, rate)
