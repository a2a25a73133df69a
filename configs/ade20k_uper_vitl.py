"""UperNet with a ViT-L on ADE20K, 160k steps of 16 (MixedAE, table A3).

    python -m mixjax.main --config=configs/ade20k_uper_vitl.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :size=L, :base=3e-4, :decay=0.75 (size=B takes decay=.65: table A4)

MAE 53.6, MixedAE 53.8 (1500 epochs) and 54.0 (1600); 1.9e19 FLOP. Absolute positions
alone and windows 341 apart, as in iBOT and BEiT, which the paper follows.
Departures: drop-path is not in the paper; 0.2 for L and 0.1 for B are iBOT's.
"""

from configs import common, dense


def get_config(arg=""):
    v = common.arguments(arg, size="L", base=3e-4, decay=0.75)
    rate = common.choice("size", v.size, {"B": 0.1, "L": 0.2})
    return dense.upernet(v.size, 341, v.base, v.decay, drop_path=rate)
