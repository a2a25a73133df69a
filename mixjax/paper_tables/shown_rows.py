"""What is shown of the rows beside their numbers: data, no code."""

from mixjax.paper_tables.recipes_of_rows import T1

# Rows whose number the papers contradict, as rules of recipes_of_rows.py, and in a few
# words what speaks against it.
CONTRADICTED = (
    ({"paper": "mimae", "settings.contradicts": ".+"}, "84.1 in table 1"),
    ({"paper": "mimae", "method": "SimMIM"}, "caption: Swin-B, but ViT-B's number"),
    ({"paper": "mimae", "method": "MI-SimMIM"}, "Swin-B or ViT-B: unclear"),
    ({"paper": "mimae", "table": "Table 5", "method": "MAE"}, "of two checkpoints"),
    ({"paper": "mimae", "id": ".*headline-gain.*"}, "0.3 with the text's 83.9"),
    ({"paper": "lam", "method": "BYOL"}, "Un-Mix's linear number, with Un-Mix"),
    ({"paper": "lam", "method": "SimCLR"}, "Un-Mix's 5-nn"),
    ({"paper": "lam"}, "headed 5-nn, but k = 200"),
    (T1 | {"settings.grid": "2x2"}, "same as discrete"),
    (T1 | {"settings.mask_mode": "discrete"}, "same as 2x2"),
    (T1 | {"value": "68.11"}, "68.36 in table 5"),
    ({"paper": "mixmask", "table": "Table 5", "value": "68.36"}, "68.11 in table 1"),
    ({"paper": "mixmask", "value": "50.78"}, "twice, in tables 2 and 5"),
    ({"paper": "mixmask", "table": "Table 5", "value": "68.5"}, "68.6 in Un-Mix"),
    ({"id": "mixedae-text-speedup.*"}, "1.67 for 1600 epochs"),
)

PAPER_NAMES = {
    "unmix": "Un-Mix",
    "mixmask": "MixMask",
    "lam": "Lam",
    "mixedae": "MixedAE",
    "mimae": "MI-MAE",
}
# The few rows that the README shows.
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
