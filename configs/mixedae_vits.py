"""MixedAE ViT-S/16 on ImageNet-1K (Chen et al., CVPR 2023, tables A1).

    python -m mixjax.main --config=configs/mixedae_vits.py --workdir=...
    variants: :epochs=800 and, after commas, r=.25 (.5, .125), attend=homologous
    (global, masked_sa), segment=1, recon=1, homocon=1, mixing=1, mode=compose (full),
    start=0 (first layer with TopK), position=encoder (decoder, a layer's number),
    positives=all (one, prototype); configs/README.md has the paper's rows

Expected: no number in the paper. About 28 H200-hours per 800
epochs at 40 % of the peak.
Departures: the paper's main text is not at hand; what its supplement leaves open is a
field of config.method, see mixjax/methods/mixedae.py.
"""

from configs import masked


def get_config(arg=""):
    return masked.mixedae("S", arg, epochs=800, batch=4096)
