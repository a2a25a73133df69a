"""Linear probing of a ViT-B/16 on ImageNet-1K, as MAE's code does (He et al., 2022).

    python -m mixjax.main --config=configs/linear_vitb.py \
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    variants: :size=B (S, L, H), :epochs=90 (50 is enough for L and H)

Expected: MAE, 1600 epochs: 68.0. The class token after the final norm is read.
Departures: bfloat16 instead of float16.
"""

from configs import common, supervised


def get_config(arg=""):
    v = common.arguments(arg, size="B", epochs=90)
    common.choice("size", v.size, common.VIT_SIZES)
    return supervised.linear_vit(v.size, v.epochs)
