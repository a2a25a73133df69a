"""MixedAE with a ViT-L (table A3): rate 3e-4, decay 0.75, windows 341 apart as in BEiT,
which the paper follows; it does not say what drop-path is.
"""

_base_ = ["upernet_mae_vitl.py"]

model = dict(test_cfg=dict(stride=(341, 341)))
optim_wrapper = dict(optimizer=dict(lr=3e-4), paramwise_cfg=dict(decay_rate=0.75))
