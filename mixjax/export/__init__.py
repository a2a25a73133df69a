"""Weights to PyTorch's names and back, with a check.

Each family of encoders has one list of rules (vit.py, swin.py, resnet.py) that is read
in both directions (name_rules.py, recognise.py). files.py and safe_unpickle.py read and
write the formats, weights.py takes the weights out of a checkpoint, check.py compares
with torch in another process, and card.py says what was written. Nothing here imports
torch but torch_side.py, which is a program of its own, and nothing that is read is ever
run.
"""
