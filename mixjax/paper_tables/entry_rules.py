"""What an entry of the ledger must be to count as a row of the tables: data, no code.

The names of fields, protocols and metrics are regular expressions, which must match the
whole name unless noted otherwise.
"""

# A row's protocol, or its file of evaluations -> the start of the entry's protocol.
PROTOCOLS = {
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
# (a row's metric, its data set or None for any) -> the name of the entry's metric.
METRICS = {
    ("top1", "ImageNet-A"): r"(.*/)?imagenet_a/top1",
    ("mCE", "ImageNet-C"): r"(.*/)?imagenet_c/mce",
    ("top1", None): r"(?!.*imagenet_)(.*/)?top1",
    ("top5", None): r"(?!.*imagenet_)(.*/)?top5",
}
METRICS |= {(name, None): rf"(.*/)?{name}" for name in DENSE}
# Fields of the pre-training that must equal those of the row's recipe.
SAME = (
    r"epochs",
    r"steps",
    r"init_from",
    r"method\..*",
    r"model\.encoder\.(name|image_size|patch|width|depth|depths|heads|window)",
    r"model\.encoder\.(block|layers|widths|stem)",
)
# The same for the downstream run.
SAME_AFTER = (
    r"epochs",
    r"steps",
    r"method\.name",
    r"model\.encoder\.(image_size|relative)",
)
# Fields that may differ without notice; differences in all others are departures.
FREE = (
    r"(log|checkpoint|evals|mesh)\..*",
    r"data\.(source|directory|threads|prefetch|eval_batch|on_device)",
    r"model\.\w+\.(remat|scan)",
    r"(accumulate|seed|init_from)",
)
# A data set -> what its data.source contains, and its number of training images.
SETS = {
    "CIFAR-10": (r"cifar-?10(?!0)", 50_000),
    "CIFAR-100": (r"cifar-?100", 50_000),
    "STL-10": (r"stl-?10", 105_000),  # with the 100,000 images without labels
    "Tiny-ImageNet": (r"tiny", 100_000),
    "ImageNet-1K": (
        r"(?<!tiny-)(imagenet2012|imagenet-?1k|ilsvrc|imagenet$)",
        1_281_167,
    ),
}
