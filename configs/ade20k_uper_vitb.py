"""UperNet with a ViT-B on ADE20K, 160k steps of 16 (MI-MAE, table 2; MAE's setting).

    python -m mixjax.main --config=configs/ade20k_uper_vitb.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :base=1e-4, :decay=0.65, :bias=1

MAE 48.1, MI-MAE 49.3 (single scale); 9.3e18 FLOP. MAE's own rate was never published,
so these are mmsegmentation's (48.13 from MAE's weights); the papers searched, and rate,
decay and drop-path are worth two points: sweep them. bias=1, mmsegmentation's form,
adds relative positions (from zero) and scales of the branches (from one) to the blocks.
Departures: none known.
"""

from configs import common, dense


def get_config(arg=""):
    v = common.arguments(arg, base=1e-4, decay=0.65, bias=True)
    c = dense.upernet("B", 256, v.base, v.decay, drop_path=0.1)
    if v.bias:
        c.model.encoder.relative, c.model.encoder.layer_scale = "bias", True
    return c
