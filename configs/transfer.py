"""Fine-tuning on the eleven classification sets of MixedAE (CVPR 2023, table 2).

    python -m mixjax.transfer --config=configs/transfer.py \\
        --config.init_from=WORKDIR_OF_A_PRE_TRAINING_RUN --workdir=...
    runs all of the suite; one set and one rate alone:
    python -m mixjax.main --config=configs/transfer.py:set=pets,rate=.01 ...
    variants: :size=B (S, L), :set=, :stage=search (final: train and val together,
    scored on the test set), :rate=

SGD without decay, 5,000 steps of 64 pictures, a cosine without warm-up; of four rates
the best on the validation part, then once more with all but the test set. What the
paper leaves open follows ssl-transfer: val is the set's own, or a random fifth of
train. Numbers by set are in a table that is not public.
Departures: the encoder's mean of patches is read, as in fine-tuning on ImageNet.
"""

from configs import common, supervised
from configs.common import ConfigDict

FIFTH = ("train | part(.8, seed=0)", "train | rest(.8, seed=0)", "train")
OWN = ("train", "validation", "train+validation")
AIRCRAFT = "fgvc-aircraft-2013b"
SETS = {  # source, classes, metric, splits: train, val, both, test
    "aircraft": (
        f"folder:{AIRCRAFT}",
        100,
        "mean_per_class",
        "train val trainval test",
    ),
    "caltech101": ("tfds:caltech101", 102, "mean_per_class", (*FIFTH, "test")),
    "cars": ("tfds:cars196", 196, "top1", (*FIFTH, "test")),
    "cifar10": ("tfds:cifar10", 10, "top1", (*FIFTH, "test")),
    "cifar100": ("tfds:cifar100", 100, "top1", (*FIFTH, "test")),
    "dtd": ("tfds:dtd", 47, "top1", (*OWN, "test")),
    "flowers": ("tfds:oxford_flowers102", 102, "mean_per_class", (*OWN, "test")),
    "food": ("tfds:food101", 101, "top1", (*FIFTH, "validation")),
    "pets": ("tfds:oxford_iiit_pet", 37, "mean_per_class", (*FIFTH, "test")),
    "sun397": ("tfds:sun397/standard-part1-120k", 397, "top1", (*FIFTH, "test")),
    "voc2007": ("tfds:voc/2007", 20, "map", (*OWN, "test")),
}
ARCHIVES = {  # what is not prepared by `python -m mixjax.prepare NAME` alone
    "aircraft": f"unpack {AIRCRAFT}.tar.gz here, or set data.source=folder:PATH",
    "cars": "TFDS' address for it is dead: put the archives into its manual folder",
}


def get_config(arg=""):
    v = common.arguments(arg, size="B", set="pets", stage="search", rate=0.01)
    source, classes, metric, splits = common.choice("set", v.set, SETS)
    train, val, both, test = splits.split() if isinstance(splits, str) else splits
    stages = {"search": (train, val), "final": (both, test)}
    c = supervised.imagenet(224, f"transfer/{v.set}")
    c.steps, c.epochs, c.batch = 5000, 1.0, 64
    split, eval_split = common.choice("stage", v.stage, stages)
    c.data.update(ConfigDict(dict(source=source, split=split, eval_split=eval_split)))
    c.data.eval_view = "decode_center(224, resize_to=224) | normalize"
    c.data.eval_batch = 256
    c.model.encoder = common.vit(v.size, (224, 224), 16)
    c.model.encoder.pool, c.model.encoder.position = "mean_norm", "learned"
    c.model.classifier = common.classifier(classes, 0.01, feature_norm=False)
    c.method = supervised.method("trained", 0.0, ConfigDict())
    c.method.loss = "sigmoid" if metric == "map" else "softmax"
    c.optim = common.sgd(0.0)
    c.optim.nesterov = True
    c.schedule = common.warmup_cosine(v.rate, "none", warmup_epochs=0.0)
    c.evals.classify.every_epochs = 0.0
    c.evals.pictures.every_epochs = 0.0
    c.checkpoint.keep = 1
    c.suite = ConfigDict()
    c.suite.sets, c.suite.rates = tuple(SETS), (1e-3, 3e-3, 1e-2, 3e-2)
    c.suite.metric = metric
    c.suite.archive = ARCHIVES.get(v.set, "")
    return c
