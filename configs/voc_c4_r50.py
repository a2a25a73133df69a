"""Faster R-CNN R50-C4 on VOC 07+12, 24k steps of 16 (Un-Mix table 5a, MixMask table 7).

    python -m mixjax.main --config=configs/voc_c4_r50.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=... --config.seed=1

AP50, AP, AP75 on test 2007, the mean of three seeds: MoCo v2 82.4, 57.0, 63.6; with
Un-Mix 83.0, 57.7, 64.3; MixMask 82.83, 57.56, 64.00. One run differs from the next by
0.2, 0.2, 0.4. 1.3e18 FLOP.
Departures: pictures lie on one square canvas, whose rest batch norms leave out; and
see mixjax/methods/detect.py.
"""

from configs import common, dense

SPLITS = "trainval2007+trainval2012", "test2007"


def get_config(arg=""):
    common.arguments(arg)
    c = dense.c4(common.base(), dense.VOC, 24_000, (18.0, 22.0), warm=0.1)
    views = dense.short_sides(480, 0), dense.whole_view(0)
    c.data = dense.source("voc_objects:VOCdevkit", *SPLITS, *views, 8)
    c.evals = dense.scored("detection_voc", "voc07", every_epochs=0.0)
    c.evals.detect.precise = 200
    return c
