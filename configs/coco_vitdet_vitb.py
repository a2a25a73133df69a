"""Mask R-CNN of ViTDet with a ViT-B on COCO, 100 epochs of 64 (MI-MAE, table 2).

    python -m mixjax.main --config=configs/coco_vitdet_vitb.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :size=B, :canvas=1024 (512 for a cheap comparison, never with the table),
    :masks=1 (0 for pictures that have boxes alone)

MAE 51.2 boxes, 45.5 masks; MI-MAE 52.0, 46.1; 5.6e19 FLOP. Detectron2 runs of the same
settings have 51.6, 45.9, and differ by 0.1 from each other.
Departures: see mixjax/methods/detect.py.
"""

from configs import common, dense


def get_config(arg=""):
    v = common.arguments(arg, size="B", canvas=1024, masks=True)
    rates = common.choice("size", v.size, {"B": (0.1, 0.7), "L": (0.4, 0.8)})
    c = dense.vitdet(v.size, *rates)
    c.model.encoder.image_size = (v.canvas, v.canvas)
    c.data.views = tuple(view.replace("1024", str(v.canvas)) for view in c.data.views)
    c.data.eval_view = c.data.eval_view.replace("1024", str(v.canvas))
    return c if v.masks else dense.without_masks(c)
