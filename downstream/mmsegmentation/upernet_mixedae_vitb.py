"""MixedAE with a ViT-B (table A4): rate 3e-4, decay 0.65, windows 341 apart as in
BEiT, which the paper follows; it does not say what drop-path is.
"""

_base_ = ["upernet_mae_vitb.py"]

model = dict(test_cfg=dict(stride=(341, 341)))
optim_wrapper = dict(optimizer=dict(lr=3e-4))
