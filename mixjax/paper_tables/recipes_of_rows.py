"""Which recipe makes which row of the papers' tables: data, no code.

A rule is a pair (where, result). `where` maps fields of a row to regular expressions,
each of which must match the whole text of its field (null is ""); "settings.x" is the
setting x. The first rule that fits a row applies. In commands, {set}, {base},
{mixture}, {epochs}, {share}, {grid} and others are filled in from the row, see
commands_of_rows.py.
"""

# Files that the rules name but configs/ lacks. No other file may be missing.
NOT_BUILT_YET = ()

# --- rows without a command ----------------------------------------------------------

OTHERS = "DINO|MoCo v3|BEiT|C-MAE|SemMAE|MFF|PixMIM|iBOT|CMC|PIRL"
REASONS = (
    (
        {"method": OTHERS},
        "another paper's method, which mixjax does not have",
    ),
    (
        {"method": "SimCLR", "pretrain_data": "ImageNet-1K"},
        "the papers quote this number and have no recipe for SimCLR on ImageNet-1K",
    ),
    (
        {"method": "Random init.|Supervised"},
        "random or supervised weights: there is nothing to pre-train",
    ),
    (
        {"paper": "lam", "method": "BYOL"},
        "no such number: it is the linear accuracy of BYOL with Un-Mix, which is a row "
        "of Un-Mix's table 3",
    ),
    (
        {"paper": "mixmask", "settings.ablated": "mask_mode", "value": "67.78"},
        "the paper does not name the grid, and none of its blocked grids has 67.78",
    ),
    (
        {"metric": "gpu_days|speedup_over_ibot|extra_cost_fraction_upper_bound"},
        "a cost on the paper's machines; entries of the ledger record their own hours",
    ),
    (
        {"metric": "gain_low|gain_high|top1_gain_over_.*"},
        "a difference between other rows",
    ),
    (
        {"metric": ".*curve", "value": ""},
        "a plot without numbers; configs/README.md has the commands of its points",
    ),
    (
        {"paper": "unmix", "table": "Table [12]", "value": ""},
        "a picture without numbers; configs/README.md has the commands of its rows",
    ),
    (
        {"protocol": "analysis"},
        "a curve of training: train/topk_accuracy in the metrics.jsonl of "
        "configs/mixedae_vitb.py",
    ),
    (
        {"protocol": "pretrain_loss"},
        "a setting, not a result: method.gate.level of the recipes of MI-MAE",
    ),
    (
        {"method": "(MI-)?SimMIM", "protocol": "linear|lowshot.*"},
        "no recipe yet: linear_vitb.py and lowshot_vitb.py are for the ViT of MAE, not "
        "for that of SimMIM or a Swin",
    ),
)

# --- pre-training --------------------------------------------------------------------

FILES = {  # the first part of the name of a recipe
    "CIFAR-10": "c10",
    "CIFAR-100": "c100",
    "STL-10": "stl",
    "Tiny-ImageNet": "tiny",
    "ImageNet-1K": "in1k",
}
BASES = (  # {base}: data and method, before the mixture
    ({"method": "MoCo.*", "pretrain_data": "CIFAR-100?"}, "{set}_moco.py:symmetric=1"),
    ({"method": "MoCo", "pretrain_data": "Tiny-ImageNet"}, "tiny_moco.py"),
    ({"method": "MoCo", "pretrain_data": "ImageNet-1K"}, "in1k_mocov1.py"),
    ({"method": "MoCo v2"}, "in1k_mocov2.py"),
    ({"method": "SimCLR"}, "{set}_simclr.py"),
    ({"method": "BYOL"}, "{set}_byol.py"),
    ({"method": "SimSiam"}, "{set}_simsiam.py"),
    ({"method": "SwAV"}, "{set}_swav.py"),
    ({"method": r"Whitening \(W=2\)"}, "{set}_wmse.py"),
    ({"method": r"Whitening \(W=4\)"}, "{set}_wmse.py:views=4"),
)
MIXTURES = {None: "none", "mixmask+unmix": "both"}  # others have the recipe's names
RATIOS = {"0.25||0.75": ".25", "uniform(0,1)": "0-1", "uniform(0.25,0.75)": ".25-.75"}

MASK = "--config.method.mixtures.mixmask"
SWAPPED = f"{{base}},mixture=both {MASK}.permutation=reverse"
P = "{base},mixture=both --config.method.mixtures.unmix.probability"
OTHER = "Tiny-ImageNet|ImageNet-1K"
PRESETS = (  # rows of MixMask's table 1 that are recipes without any change
    {"pretrain_data": "CIFAR-100", "settings.grid": "2x2"},
    {"pretrain_data": "CIFAR-100", "settings.mask_mode": "discrete"},
    {"pretrain_data": "Tiny-ImageNet", "settings.grid": "4x4"},
    {"pretrain_data": "ImageNet-1K", "settings.grid": "8x8"},
    {"pretrain_data": OTHER, "settings.ablated": "mask_mode"}
    | {"settings.mask_mode": "blocked"},
    {"settings.ablated": "mask_ratio", "settings.mask_ratio": "0.5"},
)
T1 = {"paper": "mixmask", "table": "Table 1"}
A4 = {"paper": "mixedae", "table": r"Table A4\(.\)"}
NAIVE = "mixedae_vitb.py:epochs=300,attend=global"
T3 = {"paper": "mimae", "table": r"Table 3\(.\)"}
T3_RUN = "mimae_vitb.py:epochs=50"
PRETRAIN = (
    # MixMask, table 1: grid, kind of mask, ratio.
    *((T1 | where, "{base},mixture=mixmask") for where in PRESETS),
    (
        T1 | {"pretrain_data": OTHER, "settings.grid": "2x2"},
        f"{{base}},mixture=mixmask {MASK}.grid=2 {MASK}.kind=discrete",
    ),
    (
        T1 | {"pretrain_data": OTHER, "settings.mask_mode": "discrete"},
        f"{{base}},mixture=mixmask {MASK}.grid=2 {MASK}.kind=discrete",
    ),
    (
        T1 | {"pretrain_data": "CIFAR-100", "settings.grid": ".+"},
        f"{{base}},mixture=mixmask {MASK}.grid={{grid}} {MASK}.kind=block",
    ),
    (T1 | {"settings.grid": ".+"}, f"{{base}},mixture=mixmask {MASK}.grid={{grid}}"),
    (
        T1 | {"settings.ablated": "mask_ratio"},
        "{base},mixture=mixmask,ratio={ratio}",
    ),
    # MixMask, tables 2, 3, 10.
    ({"paper": "mixmask", "settings.permutation": "same"}, SWAPPED),
    ({"paper": "mixmask", "table": "Table 3", "settings.P": "0.0"}, f"{P}=0"),
    ({"paper": "mixmask", "table": "Table 3", "settings.P": "1.0"}, f"{P}=1"),
    # Lam: asymmetric.
    ({"paper": "lam", "mixture": "cutmix"}, "c10_lam_cutmix.py"),
    ({"paper": "lam", "mixture": "lam_a1"}, "c10_lam_a1.py"),
    ({"paper": "lam", "mixture": "lam_a2"}, "c10_lam_a2.py"),
    ({"paper": "lam", "method": "MoCo"}, "c10_moco.py:mixture={mixture}"),
    # Un-Mix: longer or larger than usual.
    (
        {"paper": "unmix", "settings.multi_scale": "True"},
        "in1k_mocov2_multiscale.py",
    ),
    (
        {"method": "MoCo v2", "epochs": "800"},
        "{base},mixture={mixture},epochs={epochs}",
    ),
    (
        {"method": "SwAV", "epochs": "[468]00|1000"},
        "{base},mixture={mixture},epochs={epochs}",
    ),
    # MixedAE and its MAE.
    (A4 | {"method": "MAE"}, "mae_vitb.py:epochs=300"),
    (
        A4 | {"settings.masked_self_attention": "True"},
        "mixedae_vitb.py:epochs=300,attend=masked_sa,segment=0,homocon=0",
    ),
    (A4 | {"method": "Naive mixing"}, f"{NAIVE},segment=0,homocon=0"),
    (A4 | {"settings.losses": r"\['recon'\]"}, f"{NAIVE},segment=0,homocon=0"),
    (A4 | {"settings.losses": r"\['homocon'\]"}, f"{NAIVE},recon=0"),
    (A4 | {"settings.segment_embeddings": "False"}, f"{NAIVE},segment=0"),
    (A4 | {"settings.mixing": "False"}, f"{NAIVE},mixing=0"),
    (A4 | {"settings.default": "True"}, NAIVE),
    ({"method": "MixedAE", "epochs": "1500"}, "mixedae_vitl.py:epochs=1500"),
    ({"method": "MixedAE", "epochs": "1600"}, "mixedae_vitl.py"),
    ({"method": "MAE", "backbone": "ViT-L/16"}, "mae_vitl.py:epochs={epochs}"),
    # MI-MAE and its MAE and SimMIM.
    (T3 | {"method": "MAE"}, "mae_vitb.py:epochs=200"),
    (T3 | {"settings.combination": "b"}, f"{T3_RUN},lam3=0,approx=0"),
    (
        T3 | {"settings.combination": "c"},
        f"{T3_RUN},lam1=0,lam3=0,approx=0,gate=open",
    ),
    (T3 | {"settings.combination": "d"}, f"{T3_RUN},approx=0"),
    (T3 | {"settings.combination": "e"}, f"{T3_RUN},lam2=0"),
    (T3 | {"settings.lambda3": "1|20"}, f"{T3_RUN},lam3={{lambda3}}"),
    (T3 | {"settings.lambda2": "0.1|0.5|10"}, f"{T3_RUN},lam2={{lambda2}}"),
    (T3 | {"settings.mask_generation": "independent"}, f"{T3_RUN},masks=independent"),
    (T3 | {"settings.default": "True"}, T3_RUN),
    (
        {"method": "MI-MAE", "settings.masks_per_image": "6"},
        "mimae_vitb.py:epochs=33,views=6",
    ),
    (
        {"method": "MI-MAE", "settings.masks_per_image": "8"},
        "mimae_vitb.py:epochs=25,views=8",
    ),
    ({"method": "MI-MAE", "backbone": "ViT-S"}, "mimae_vits.py"),
    ({"method": "MI-MAE", "epochs": "200"}, "mimae_vitb.py"),
    ({"method": "MI-MAE"}, "mimae_vitb.py:epochs={epochs}"),
    ({"method": "MAE", "backbone": "ViT-S"}, "mae_vits.py"),
    ({"method": "MAE", "epochs": "800"}, "mae_vitb.py"),
    ({"method": "MAE", "epochs": ""}, "mae_vitb.py:epochs=1600"),  # what MAE reports
    ({"method": "MAE"}, "mae_vitb.py:epochs={epochs}"),
    ({"method": "SimMIM"}, "simmim_vitb.py"),
    ({"method": "MI-SimMIM"}, "misimmim_swinb.py"),
    # All other siamese rows: method, data, mixture.
    ({"paper": "unmix|mixmask|lam"}, "{base},mixture={mixture}"),
)

# --- downstream ----------------------------------------------------------------------

SMALL = "CIFAR-10|CIFAR-100|STL-10|Tiny-ImageNet"
TUNED = "finetune_vitb.py:base=1e-3,decay=.75"  # as MI-MAE's section 5.1 has it
LARGE = "finetune_vitl.py --config.model.encoder.drop_path=.1 --config.batch=512"
VITDET, UPER_B = "coco_vitdet_vitb.py", "ade20k_uper_vitb.py:bias=1"
UPER_A4 = "ade20k_uper_vitl.py:size=B,decay=.65"
MASK_RCNN = {"settings.head": "Mask R-CNN R50-C4"}
# (recipe that starts from the pre-training, file of evaluations if not the recipe's);
# no recipe: the pre-trained network itself is evaluated.
DOWNSTREAM = (
    ({"protocol": "knn5|knn200"}, ("", "")),
    ({"protocol": "detection_voc"}, ("voc_c4_r50.py", "")),
    (MASK_RCNN | {"settings.schedule": "1x"}, ("coco_c4_r50.py:schedule=1x", "")),
    (MASK_RCNN | {"settings.schedule": "2x"}, ("coco_c4_r50.py:schedule=2x", "")),
    ({"protocol": "(detection|instance)_coco", "paper": "mimae"}, (VITDET, "")),
    ({"protocol": "(detection|instance)_coco"}, ("coco_cascade_vitl.py", "")),
    ({"protocol": "segmentation_ade20k", "paper": "mimae"}, (UPER_B, "")),
    ({"protocol": "segmentation_ade20k"}, ("ade20k_uper_vitl.py", "")),
    ({"protocol": "ablation_segmentation_ade20k"}, (UPER_A4, "")),
    (
        {"protocol": "linear", "pretrain_data": SMALL, "method": "SwAV"},
        ("linear_cifar.py:encoder=swav,data={set}", ""),
    ),
    ({"protocol": "linear", "pretrain_data": SMALL}, ("", "probe.py")),
    ({"protocol": "linear", "backbone": "ResNet-50"}, ("linear_r50.py", "")),
    ({"protocol": "linear", "backbone": "ViT-S"}, ("linear_vitb.py:size=S", "")),
    ({"protocol": "linear"}, ("linear_vitb.py", "")),
    ({"protocol": "finetune", "method": "SimMIM"}, ("finetune_simmim_vitb.py", "")),
    ({"protocol": "finetune", "method": "MI-SimMIM"}, ("finetune_swinb.py", "")),
    ({"protocol": "finetune", "backbone": "ViT-S"}, ("finetune_vits.py", "")),
    ({"protocol": "finetune", "paper": "mixedae"}, (LARGE, "")),
    ({"protocol": ".*finetune", "method": "MI-MAE"}, (TUNED, "")),
    ({"protocol": ".*finetune"}, ("finetune_vitb.py", "")),
    ({"protocol": "robustness_.", "method": "MI-MAE"}, (TUNED, "robustness.py")),
    ({"protocol": "robustness_."}, ("finetune_vitb.py", "robustness.py")),
    (
        {"protocol": "lowshot.*", "backbone": "ResNet-50"},
        ("lowshot_r50.py:share={share}", ""),
    ),
    ({"protocol": "lowshot.*"}, ("lowshot_vitb.py:share={share}", "")),
)
