"""Which recipe makes which row, and which run counts as a row: data, no code.

A rule is (where, what). `where` has regular expressions of fields of a row; each must
be the whole of the field's text (null is ""), "settings.x" is a setting. The first rule
that fits counts. In commands {set}, {base}, {mixture}, {epochs}, {share}, {grid} and so
on stand for words of the row, see commands_of_rows.py.
"""

# Files that rows name and configs/ does not have yet. Nothing else may be missing.
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
        "SimCLR on ImageNet-1K is no recipe of these papers: its number is quoted",
    ),
    (
        {"method": "Random init.|Supervised"},
        "random or supervised weights: there is nothing to pre-train",
    ),
    (
        {"paper": "lam", "method": "BYOL"},
        "no such number: it is the linear accuracy of BYOL with Un-Mix, which has its "
        "row in table 3 of Un-Mix",
    ),
    (
        {"paper": "mixmask", "settings.ablated": "mask_mode", "value": "67.78"},
        "the paper does not say of which grid; none of its blocked grids has 67.78",
    ),
    (
        {"metric": "gpu_days|speedup_over_ibot|extra_cost_fraction_upper_bound"},
        "a cost on the paper's machines; entries of the ledger have hours of their own",
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
        "no recipe yet: linear_vitb.py and lowshot_vitb.py are of MAE's form of the "
        "ViT, not of SimMIM's or a Swin",
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
MIXTURES = {None: "none", "mixmask+unmix": "both"}  # others are called as in the recipe
RATIOS = {"0.25||0.75": ".25", "uniform(0,1)": "0-1", "uniform(0.25,0.75)": ".25-.75"}

MASK = "--config.method.mixtures.mixmask"
SWAPPED = f"{{base}},mixture=both {MASK}.permutation=reverse"
P = "{base},mixture=both --config.method.mixtures.unmix.probability"
OTHER = "Tiny-ImageNet|ImageNet-1K"
PRESETS = (  # rows of MixMask's table 1 that are its recipes as they are
    {"pretrain_data": "CIFAR-100", "settings.grid": "2x2"},
    {"pretrain_data": "CIFAR-100", "settings.mask_mode": "discrete"},
    {"pretrain_data": "Tiny-ImageNet", "settings.grid": "4x4"},
    {"pretrain_data": "ImageNet-1K", "settings.grid": "8x8"},
    {"pretrain_data": OTHER, "settings.ablated": "mask_mode"}
    | {"settings.mask_mode": "blocked"},
    {"settings.ablated": "mask_ratio", "settings.mask_ratio": "0.5"},
)
ONE = {"paper": "mixmask", "table": "Table 1"}
A4 = {"paper": "mixedae", "table": r"Table A4\(.\)"}
NAIVE = "mixedae_vitb.py:epochs=300,attend=global"
T3 = {"paper": "mimae", "table": r"Table 3\(.\)"}
SHORT = "mimae_vitb.py:epochs=50"
PRETRAIN = (
    # MixMask, table 1: grid, kind of mask, ratio.
    *((ONE | where, "{base},mixture=mixmask") for where in PRESETS),
    (
        ONE | {"pretrain_data": OTHER, "settings.grid": "2x2"},
        f"{{base}},mixture=mixmask {MASK}.grid=2 {MASK}.kind=discrete",
    ),
    (
        ONE | {"pretrain_data": OTHER, "settings.mask_mode": "discrete"},
        f"{{base}},mixture=mixmask {MASK}.grid=2 {MASK}.kind=discrete",
    ),
    (
        ONE | {"pretrain_data": "CIFAR-100", "settings.grid": ".+"},
        f"{{base}},mixture=mixmask {MASK}.grid={{grid}} {MASK}.kind=block",
    ),
    (ONE | {"settings.grid": ".+"}, f"{{base}},mixture=mixmask {MASK}.grid={{grid}}"),
    (
        ONE | {"settings.ablated": "mask_ratio"},
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
    # Un-Mix: what is longer or larger than usual.
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
    (T3 | {"settings.combination": "b"}, f"{SHORT},lam3=0,approx=0"),
    (T3 | {"settings.combination": "c"}, f"{SHORT},lam1=0,lam3=0,approx=0,gate=open"),
    (T3 | {"settings.combination": "d"}, f"{SHORT},approx=0"),
    (T3 | {"settings.combination": "e"}, f"{SHORT},lam2=0"),
    (T3 | {"settings.lambda3": "1|20"}, f"{SHORT},lam3={{lambda3}}"),
    (T3 | {"settings.lambda2": "0.1|0.5|10"}, f"{SHORT},lam2={{lambda2}}"),
    (T3 | {"settings.mask_generation": "independent"}, f"{SHORT},masks=independent"),
    (T3 | {"settings.default": "True"}, SHORT),
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

# --- what comes after it -------------------------------------------------------------

SMALL = "CIFAR-10|CIFAR-100|STL-10|Tiny-ImageNet"
TUNED = "finetune_vitb.py:base=1e-3,decay=.75"  # as MI-MAE's section 5.1 has it
LARGE = "finetune_vitl.py --config.model.encoder.drop_path=.1 --config.batch=512"
VITDET, UPER_B = "coco_vitdet_vitb.py", "ade20k_uper_vitb.py:bias=1"
UPER_A4 = "ade20k_uper_vitl.py:size=B,decay=.65"
MASK_RCNN = {"settings.head": "Mask R-CNN R50-C4"}
DOWNSTREAM = (  # (recipe begun from the pre-training, evaluations that are not its own)
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

# --- which entries of the ledger are a row -------------------------------------------

PROTOCOLS = {  # a row's protocol, or evaluations -> the entry's protocol begins so
    "probe.py": r"probe/epochs=500\b",
    "knn5": r"knn/k=5\b",
    "knn200": r"knn/k=200\b",
    "linear": r"linear\b",
    "finetune": r"finetune\b",
    "ablation_finetune": r"finetune\b",
    "lowshot1": r"lowshot/share=1\b",
    "lowshot10": r"lowshot/share=10\b",
    "robustness_a": r"robust/imagenet_a\b",
    "robustness_c": r"robust/imagenet_c\b",
    "detection_voc": r"detection_voc\b",
    "detection_coco": r"detection_coco\b",
    "instance_coco": r"detection_coco\b",  # boxes and masks are measured together
    "segmentation_ade20k": r"segmentation_ade20k\b",
    "ablation_segmentation_ade20k": r"segmentation_ade20k\b",
}
DENSE = "AP AP50 AP75 APs APm APl mIoU".split()
DENSE += "APmask APmask50 APmask75 APmask_s APmask_m APmask_l".split()
METRICS = {  # a row's metric on a data set -> the name of the entry's metric
    ("top1", "ImageNet-A"): r"(.*/)?imagenet_a/top1",
    ("mCE", "ImageNet-C"): r"(.*/)?imagenet_c/mce",
    ("top1", None): r"(?!.*imagenet_)(.*/)?top1",
    ("top5", None): r"(?!.*imagenet_)(.*/)?top5",
}
METRICS |= {(name, None): rf"(.*/)?{name}" for name in DENSE}
SAME = (  # fields of the pre-training that must be as in the row's recipe
    r"epochs",
    r"steps",
    r"init_from",
    r"method\..*",
    r"model\.encoder\.(name|image_size|patch|width|depth|depths|heads|window)",
    r"model\.encoder\.(block|layers|widths|stem)",
)
SAME_AFTER = (
    r"epochs",
    r"steps",
    r"method\.name",
    r"model\.encoder\.(image_size|relative)",
)
FREE = (  # fields that make no difference worth telling; all others are told
    r"(log|checkpoint|evals|mesh)\..*",
    r"data\.(source|directory|threads|prefetch|eval_batch|on_device)",
    r"model\.\w+\.(remat|scan)",
    r"(accumulate|seed|init_from)",
)
SETS = {  # a data set -> what its data.source says, and its training pictures
    "CIFAR-10": (r"cifar-?10(?!0)", 50_000),
    "CIFAR-100": (r"cifar-?100", 50_000),
    "STL-10": (r"stl-?10", 105_000),
    "Tiny-ImageNet": (r"tiny", 100_000),
    "ImageNet-1K": (
        r"(?<!tiny-)(imagenet2012|imagenet-?1k|ilsvrc|imagenet$)",
        1_281_167,
    ),
}

# --- what is odd about rows, in a few words ------------------------------------------

CONTRADICTED = (
    ({"paper": "mimae", "settings.contradicts": ".+"}, "84.1 in table 1"),
    ({"paper": "mimae", "method": "SimMIM"}, "caption: Swin-B, but ViT-B's number"),
    ({"paper": "mimae", "method": "MI-SimMIM"}, "Swin-B or ViT-B: unclear"),
    ({"paper": "mimae", "table": "Table 5", "method": "MAE"}, "of two checkpoints"),
    ({"paper": "mimae", "id": ".*headline-gain.*"}, "0.3 with the text's 83.9"),
    ({"paper": "lam", "method": "BYOL"}, "Un-Mix's linear number, with Un-Mix"),
    ({"paper": "lam", "method": "SimCLR"}, "Un-Mix's 5-nn"),
    ({"paper": "lam"}, "headed 5-nn, but k = 200"),
    (ONE | {"settings.grid": "2x2"}, "same as discrete"),
    (ONE | {"settings.mask_mode": "discrete"}, "same as 2x2"),
    (ONE | {"value": "68.11"}, "68.36 in table 5"),
    ({"paper": "mixmask", "table": "Table 5", "value": "68.36"}, "68.11 in table 1"),
    ({"paper": "mixmask", "value": "50.78"}, "twice, in tables 2 and 5"),
    ({"paper": "mixmask", "table": "Table 5", "value": "68.5"}, "68.6 in Un-Mix"),
    ({"id": "mixedae-text-speedup.*"}, "1.67 for 1600 epochs"),
)

# --- the few rows that the README shows ----------------------------------------------

SHORT = {
    "unmix": "Un-Mix",
    "mixmask": "MixMask",
    "lam": "Lam",
    "mixedae": "MixedAE",
    "mimae": "MI-MAE",
}
HEADLINES = {
    "unmix": (
        "unmix-t3-moco-symmetric-loss-base-cifar-10-knn200-top1",
        "unmix-t3-moco-symmetric-loss-unmix-cifar-10-knn200-top1",
        "unmix-t3-byol-base-cifar-10-linear-top1",
        "unmix-t3-byol-unmix-cifar-10-linear-top1",
        "unmix-t3-simclr-unmix-cifar-100-linear-top1",
        "unmix-t4-moco-v2-base-200-top1",
        "unmix-t4-moco-v2-unmix-200-top1",
        "unmix-t4-moco-v2-unmix-800-top1",
        "unmix-t5a-unmix-200-ap50",
    ),
    "mixmask": (
        "mixmask-t5-vanilla-moco-cifar-100-top1",
        "mixmask-t5-mixmask-moco-cifar-100-top1",
        "mixmask-t5-mixmask-plus-unmix-moco-cifar-100-top1",
        "mixmask-t5-mixmask-plus-unmix-byol-cifar-100-top1",
        "mixmask-t5-mixmask-moco-v2-imagenet-1k-top1",
        "mixmask-t5-mixmask-plus-unmix-moco-v2-imagenet-1k-top1",
        "mixmask-t6-mixmask-plus-unmix-lowshot1-top1",
        "mixmask-t7-mixmask-plus-unmix-coco-ap",
    ),
    "lam": (
        "lam-t1-moco-top1",
        "lam-t1-moco-cutmix-top1",
        "lam-t1-approach-1-top1",
        "lam-t1-approach-2-top1",
    ),
    "mixedae": (
        "mixedae-ta3-mae-1600-top1",
        "mixedae-ta3-mixedae-1600-top1",
        "mixedae-ta3-mixedae-1600-miou",
        "mixedae-ta3-mixedae-1600-ap",
        "mixedae-ta4-a-mae-top1",
        "mixedae-ta4-b-recon-homocon-top1",
    ),
    "mimae": (
        "mimae-t1-mae-800-finetune-top1",
        "mimae-t1-mi-mae-200-finetune-top1",
        "mimae-t1-mi-mae-400-finetune-top1",
        "mimae-t1-mi-mae-400-linear-top1",
        "mimae-t1-mi-mae-400-lowshot1-top1",
        "mimae-t1-mi-simmim-400-finetune-top1",
        "mimae-t4-vit-s-mi-mae-finetune-top1",
        "mimae-t2-mi-mae-ap",
        "mimae-t5-mi-mae-robustness-c-mce",
    ),
}
