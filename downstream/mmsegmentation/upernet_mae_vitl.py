"""The same with a ViT-L, for which no paper here has settings: MAE's decay of
fine-tuning (0.75), iBOT's drop-path and blocks. Search the rate.
"""

_base_ = ["upernet_mae_vitb.py"]

model = dict(
    backbone=dict(
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        drop_path_rate=0.2,
        out_indices=[7, 11, 15, 23],
        init_cfg=dict(checkpoint="weights/vitl_mmseg.pth"),
    ),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=24, decay_rate=0.75))
