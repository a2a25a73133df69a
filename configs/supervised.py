"""What the recipes of fine-tuning, linear probing and few labels share.

All start from config.init_from, the workdir of a pre-training run, or, without it, from
scratch; data.split says how many labels there are (see mixjax/data/splits.py).
"""

from configs import common, siamese
from configs.common import ConfigDict

IMAGENET_CROP = "decode_crop({size}, scale=(.08, 1)) | flip"
SIMCLR = {1: "tfds:imagenet2012_subset/1pct", 10: "tfds:imagenet2012_subset/10pct"}
SMALL = {"c10": 10, "c100": 100, "stl": 10, "tiny": 200}  # classes


def classify(protocol: str, every_epochs: float) -> ConfigDict:
    """The classifier on all held-out pictures."""
    c = ConfigDict()
    c.name = "classify"
    c.every_epochs = every_epochs
    c.at_start = False
    c.protocol = protocol
    c.examples = 0  # held-out ones, spread evenly; 0: all
    return c


def variants(arg: str, **defaults) -> tuple[ConfigDict, dict[str, dict]]:
    """The variants of a recipe's argument, and {"mixture", "encoder"}: their fields.

    mixture=NAME is a file of mixjax/mixtures instead of the recipe's own, or "none".
    Only a recipe whose defaults name an encoder has fields of it.
    """
    parts = [part for part in siamese.PARTS if part in ("mixture", *defaults)]
    text, fields = common.parts_of(arg, *parts)
    return common.arguments(text, mixture="", **defaults), fields


def mix(c: ConfigDict, name: str, fields: dict) -> ConfigDict:
    """Changes the mixture of a recipe of fine-tuning, or its fields; "": as it is.

    "1" and "0" are the recipe's own and none.
    """
    if name in ("none", "0"):
        c.method.mixture = ConfigDict()
    elif name == "mixup_cutmix":
        c.method.mixture = common.mixup_cutmix(0.8, 1.0, chunk=32)
    elif name not in ("", "1"):
        c.method.mixture = common.mixture(name, fields, shared=False, groups=1)
    if fields:
        c.method.mixture = ConfigDict(c.method.mixture.to_dict() | fields)
    return c


def method(trunk: str, smoothing: float, mixed: ConfigDict) -> ConfigDict:
    """A classifier trained with its encoder ("trained") or alone ("frozen")."""
    c = ConfigDict()
    c.name = "supervised"
    c.trunk, c.loss, c.smoothing = trunk, "softmax", smoothing
    c.mixture = mixed
    return c


# --- ImageNet-1K ---------------------------------------------------------------------


def imagenet(size: int, protocol: str) -> ConfigDict:
    """The frame of ImageNet-1K: data, 1000 classes, top-1 of the validation set."""
    c = common.base()
    c.data = common.data("tfds:imagenet2012", "train", "validation")
    c.data.views = (IMAGENET_CROP.format(size=size) + " | normalize",)
    resize = round(size * 256 / 224)
    c.data.eval_view = f"decode_center({size}, resize_to={resize}) | normalize"
    c.data.eval_batch = 1024
    c.model = ConfigDict()
    c.model.precision = "bfloat16"
    return scored(c, protocol)


def scored(c: ConfigDict, protocol: str) -> ConfigDict:
    """Adds the evaluators of a supervised recipe."""
    c.evals = ConfigDict()
    c.evals.classify = classify(protocol, every_epochs=1.0)
    c.evals.pictures = common.pictures(every_epochs=20.0)
    return c


def finetune(
    encoder: ConfigDict, size: int, epochs: float, layer_decay: float, base: float
) -> ConfigDict:
    """MAE's fine-tuning (He et al., 2022, table 9, as its code has it).

    encoder: as pre-trained; its pool becomes the mean and a norm of its own.
    """
    c = imagenet(size, "finetune")
    c.epochs, c.batch = float(epochs), 1024
    view = f"{IMAGENET_CROP.format(size=size)} | randaugment(9., .5)"
    c.data.views = (f"{view} | normalize | erasing(.25)",)
    tuned(c, encoder, 1000, layer_decay)
    c.schedule = common.warmup_cosine(base, "batch/256", warmup_epochs=5.0)
    c.schedule.floor = 2.5e-7  # x 4 is the code's 1e-6
    return c


def tuned(c: ConfigDict, encoder: ConfigDict, classes: int, layer_decay: float) -> None:
    """Model, method and optimizer of MAE's fine-tuning.

    The encoder's section has `depth`, the number of its blocks, or `depths`, those of
    each stage: the learning rate falls from block to block.
    """
    c.model.encoder = encoder
    if "pool" in encoder:  # of others the features are a mean after the norm anyhow
        encoder.pool = "mean_norm"
    if "position" in encoder:
        encoder.position = "learned"
    c.model.classifier = common.classifier(classes, 2e-5, feature_norm=False)
    c.method = method("trained", 0.1, common.mixup_cutmix(0.8, 1.0, chunk=32))
    c.optim = common.adamw(b2=0.999, weight_decay=0.05)
    tokens = {"swin": "relative_bias", "beit": "cls_token", "vit": "(pos|cls)_"}
    if encoder.name in tokens:
        c.optim.decay_exempt = (tokens[encoder.name],)
    depths = encoder.depths if "depths" in encoder else (encoder.depth,)
    c.optim.layer_decay, c.optim.layers = layer_decay, tuple(depths)


def finetune_simmim(
    encoder: ConfigDict, size: int, epochs: float, layer_decay: float
) -> ConfigDict:
    """SimMIM's fine-tuning (Xie et al., 2022, appendix A.1, as its code has it)."""
    encoder.drop_path, encoder.mask_token = 0.1, False
    if encoder.name == "beit":
        encoder.relative = "each"
    c = finetune(encoder, size, epochs, layer_decay, 1.25e-3)
    c.batch = 2048
    c.optim.clip_norm = 5.0
    c.schedule = common.warmup_cosine(1.25e-3, "batch/512", warmup_epochs=20.0)
    c.schedule.floor = c.schedule.warmup_start = 2.5e-7
    c.schedule.restart = False  # the cosine has begun when the warm-up ends
    return c


def linear(c: ConfigDict) -> ConfigDict:
    """Freezes the encoder of a recipe: no gradient, no step, statistics as they are."""
    c.method = method("frozen", 0.0, ConfigDict())
    c.optim.lr_rules = (("^encoder/", 0.0),)
    return c


def linear_vit(size: str, epochs: float) -> ConfigDict:
    """MAE's linear probe (He et al., 2022, appendix A.2, as its code has it)."""
    c = imagenet(224, "linear")
    c.epochs, c.batch = float(epochs), 16384
    view = "decode_crop(224, scale=(.08, 1), once=True) | flip | normalize"
    c.data.views = (view,)
    c.model.encoder = common.vit(size, (224, 224), 14 if size == "H" else 16)
    c.model.norm = common.norm(groups=32)  # 512 pictures on a GPU
    c.model.norm.eps = 1e-6
    c.model.classifier = common.classifier(1000, 0.01, feature_norm=True)
    c.optim = common.lars(0.0)
    c.schedule = common.warmup_cosine(0.1, "batch/256", warmup_epochs=10.0)
    return linear(c)


def linear_resnet(epochs: float) -> ConfigDict:
    """MoCo's linear classification (He et al., 2020, section 4.1)."""
    c = imagenet(224, "linear")
    c.epochs, c.batch = float(epochs), 256
    view = "decode_crop(224, scale=(.08, 1), filter='bilinear') | flip | normalize"
    c.data.views = (view,)
    c.data.eval_view = (
        "decode_center(224, resize_to=256, filter='bilinear') | normalize"
    )
    c.model.encoder = common.resnet(50, (224, 224), "imagenet")
    c.model.norm = common.norm(groups=8)
    c.model.classifier = common.classifier(1000, 0.01, feature_norm=False)
    c.optim = common.sgd(0.0)
    share = epochs / 100
    drops = (60 * share, 80 * share)
    c.schedule = common.warmup_steps(30.0, "batch/256", 0.0, drops, 0.1)
    c.schedule.per = "epoch"
    return linear(c)


def lowshot_resnet(share: int) -> ConfigDict:
    """SwAV's semi-supervised evaluation: all of the network, few labels, 20 epochs."""
    c = imagenet(224, f"lowshot/share={share}")
    c.data.source = common.choice("share", share, SIMCLR)
    c.epochs, c.batch = 20.0, 256
    stats = "normalize((.485, .456, .406), (.228, .224, .225))"
    crop = "decode_crop(224, scale=(.08, 1), filter='bilinear')"
    c.data.views = (f"{crop} | flip | {stats}",)
    center = "decode_center(224, resize_to=256, filter='bilinear')"
    c.data.eval_view = f"{center} | {stats}"
    c.model.encoder = common.resnet(50, (224, 224), "imagenet")
    c.model.norm = common.norm(groups=1)
    c.model.classifier = common.classifier(1000, 0.01, feature_norm=False)
    c.method = method("trained", 0.0, ConfigDict())
    c.optim = common.sgd(0.0)
    trunk, head = {1: (0.02, 5.0), 10: (0.01, 0.2)}[share]
    c.optim.lr_rules = (("^classifier/", head / trunk),)
    c.schedule = common.warmup_steps(trunk, "batch/256", 0.0, (12.0, 16.0), 0.2)
    c.schedule.per = "epoch"
    return c


# --- small sets ----------------------------------------------------------------------


def small(
    name: str, encoder: str, protocol: str, batch: int, fields: dict
) -> ConfigDict:
    """CIFAR, STL-10 or Tiny-ImageNet and the encoder of a recipe for them.

    encoder: vit (as mae_cifar has it), resnet18, swav (its own of bottlenecks), or a
    file of mixjax/models. fields: of its section.
    """
    classes = common.choice("data", name, SMALL)
    crop = "crop(SIZE, scale=(.2, 1))" if encoder == "vit" else "crop(SIZE)"
    c = siamese.small(name, f"{crop} | flip", batch, epochs=100)
    if name == "stl":
        c.data.split = "train"
    c.data.views = c.data.views[:1]
    side = c.model.encoder.image_size
    if encoder == "swav":
        c.model.encoder = common.resnet(26, side, "swav")
    elif encoder == "vit":
        c.model.encoder = pooled(common.vit("Ti", side, 4))
        del c.model.norm
    elif encoder != "resnet18":  # which the frame has
        c.model.encoder = common.encoder(encoder, side, {})
    siamese.swap(c, "", fields)
    c.model.classifier = common.classifier(classes, 0.01, feature_norm=False)
    scored(c, protocol)
    for section in c.evals.values():
        section.every_epochs = 10.0
    return c


def pooled(encoder: ConfigDict) -> ConfigDict:
    """The encoder of mae_cifar: features are the mean of all patches."""
    encoder.pool = "mean"
    return encoder


def linear_small(name: str, encoder: str, fields: dict) -> ConfigDict:
    """A linear probe on pictures that are cropped and flipped.

    As SwAV's CIFAR code has it: SGD, 0.3, a cosine in epochs; of a ViT with the batch
    norm of MAE's probe. MAE's LARS is made for batches of 16384: with small ones the
    classifier hardly moves.
    """
    c = small(name, encoder, "linear", 32, fields)
    known = siamese.SETS[name]
    if encoder == "swav":  # that code has other deviations here than in pre-training
        own = "normalize((.4914, .4822, .4465), (.2470, .2435, .2616))"
        c.data.views = (c.data.views[0].replace(known["stats"], own),)
        c.data.eval_view = c.data.eval_view.replace(known["stats"], own)
    c.optim = common.sgd(1e-6)
    c.schedule = common.warmup_cosine(0.3, "none", warmup_epochs=0.0)
    c.schedule.per = "epoch"
    if encoder == "vit":
        c.model.norm = common.norm(groups=1)
        c.model.norm.eps = 1e-6
        c.model.classifier.feature_norm = True
    return linear(c)


def finetune_small(
    name: str, encoder: str, strong: bool, protocol: str, fields: dict
) -> ConfigDict:
    """Fine-tuning at CIFAR size; ours. strong: MAE's augmentation and mixtures.

    An encoder with `depth` or `depths` as a ViT in MAE's code; a ResNet with SGD and a
    head that is 20 times as fast, as in SwAV's semi-supervised evaluation.
    """
    c = small(name, encoder, protocol, 128, fields)
    if "depth" in c.model.encoder or "depths" in c.model.encoder:
        if "drop_path" in c.model.encoder:
            c.model.encoder.drop_path = 0.1
        tuned(c, c.model.encoder, c.model.classifier.classes, 0.75)
        c.schedule = common.warmup_cosine(1e-3, "batch/256", warmup_epochs=5.0)
    else:
        c.method = method("trained", 0.1, common.mixup_cutmix(0.8, 1.0, chunk=32))
        c.optim = common.sgd(5e-4)
        c.optim.lr_rules = (("^classifier/", 20.0),)
        c.schedule = common.warmup_cosine(0.01, "batch/256", warmup_epochs=0.0)
    if strong:
        crop, stats = c.data.views[0].split(" | normalize")
        view = f"{crop} | randaugment(9., .5) | normalize{stats} | erasing(.25)"
        c.data.views = (view,)
    else:
        c.method.mixture, c.method.smoothing = ConfigDict(), 0.0
    return c
