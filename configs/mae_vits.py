"""MAE ViT-S/16 on ImageNet-1K (MI-MAE, table 4: the baseline of its own).

    python -m mixjax.main --config=configs/mae_vits.py --workdir=...
    variants: :epochs=1600

Expected: 78.4 fine-tuned, 50.5 linear. About 28 H200-hours per 800 epochs at 40 % of
the peak: the decoder costs five times the encoder.
Departures: the paper gives neither decoder, epochs nor rate; these are ViT-B's.
"""

from configs import masked


def get_config(arg=""):
    """The recipe of the official code with a ViT-S/16."""
    return masked.mae("S", 16, arg, 800)
