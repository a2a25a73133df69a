"""What the recipes of siamese methods share: data sets, frameworks and mixtures.

A recipe is a data set, a framework, which decides everything but the images, and a
mixture. Variants of every recipe here:

    mixture=   none, both (Un-Mix by reversal and MixMask by a random permutation,
               MixMask's MixMask*), or one file of mixjax/mixtures by its name
    mixture.FIELD=   a field of that mixture; required where it is not set here
    ratio=     the share of the own image that masks keep: .5, or drawn: .25-.75
    branches=  both: the mixtures of two views against each other (Un-Mix, equation 4)
    encoder=   a backbone instead of the recipe's own, a file of mixjax/models
    encoder.FIELD=   a field of the backbone
"""

from configs import common
from configs.common import ConfigDict

MIXTURES = dict(mixture="none", ratio=".5", branches="one")
PARTS = ("mixture", "encoder")  # variants with fields of their own
JITTER = "jitter(.4, .4, .4, .1, p=.8)"
CIFAR10 = "normalize((.4914, .4822, .4465), (.2023, .1994, .2010))"
IMAGENET = "normalize"
SETS = {
    "c10": dict(source="tfds:cifar10", size=32, stem="cifar", stats=CIFAR10),
    "c100": dict(
        source="tfds:cifar100",
        size=32,
        stem="cifar",
        stats="normalize((.5071, .4867, .4408), (.2675, .2565, .2761))",
    ),
    "stl": dict(
        source="tfds:stl10",
        split="train+unlabelled",
        size=64,
        stem="small",
        stats="normalize((.43, .42, .39), (.27, .26, .27))",
        evaluation="resize(70) | center(64) | ",
    ),
    "tiny": dict(
        source="folder:tiny-imagenet-200",
        eval_split="val",
        size=64,
        stem="small",
        stats="normalize((.480, .448, .398), (.277, .269, .282))",
    ),
}


# --- data sets -----------------------------------------------------------------------


def small(name: str, view: str, batch: int, epochs: float) -> ConfigDict:
    """CIFAR, STL-10 or Tiny-ImageNet with a ResNet-18, all work on the device.

    view: operations, where SIZE stands for the side and STATS for `normalize`.
    """
    known = dict(split="train", eval_split="test", evaluation="") | SETS[name]
    c = common.base()
    c.epochs, c.batch = float(epochs), batch
    c.data = common.data(known["source"], known["split"], known["eval_split"])
    fill = lambda text: text.replace("SIZE", str(known["size"])).replace(
        "STATS", known["stats"]
    )
    c.data.views = (fill(f"decode | {view} | STATS"),) * 2
    c.data.eval_view = fill(f"decode | {known['evaluation']}STATS")
    c.data.eval_batch = 1000
    c.data.on_device = True
    c.model = ConfigDict()
    c.model.precision = "float32"
    c.model.norm = common.norm(groups=1)
    side = known["size"]
    c.model.encoder = common.resnet(18, (side, side), known["stem"])
    c.method = siamese()
    c.evals = ConfigDict()
    c.evals.knn = common.knn(k=200, temperature=0.1, every_epochs=10.0)
    c.evals.health = common.health(every_epochs=10.0)
    c.evals.pictures = common.pictures(every_epochs=100.0)
    c.evals.activation = common.activation(every_epochs=100.0)
    c.evals.histograms = common.histograms(every_epochs=100.0)
    c.checkpoint.every_epochs = 10.0
    return c


def imagenet(view: str, batch: int, epochs: float) -> ConfigDict:
    """ImageNet-1K with a ResNet-50 at 224 pixels, batch norms of 8 GPUs."""
    c = common.base()
    c.epochs, c.batch = float(epochs), batch
    c.data = common.data("tfds:imagenet2012", "train", "validation")
    c.data.views = (view,) * 2
    c.data.eval_view = "decode_center(224, resize_to=256) | normalize"
    c.data.eval_batch = 1024
    c.model = ConfigDict()
    c.model.precision = "bfloat16"
    c.model.norm = common.norm(groups=8)
    c.model.encoder = common.resnet(50, (224, 224), "imagenet")
    c.method = siamese()
    c.evals = ConfigDict()
    c.evals.knn = common.knn(k=20, temperature=0.07, every_epochs=20.0)
    c.evals.knn.bank = 128_000
    c.evals.health = common.health(every_epochs=20.0)
    c.evals.pictures = common.pictures(every_epochs=20.0)
    c.evals.activation = common.activation(every_epochs=20.0)
    c.evals.histograms = common.histograms(every_epochs=20.0)
    return c


# --- frameworks ----------------------------------------------------------------------


def siamese() -> ConfigDict:
    """The method's section before a framework fills it in: symmetric, no teacher."""
    m = ConfigDict()
    m.name = "siamese"
    m.objective = ConfigDict()
    m.pairing = ConfigDict(dict(pairs="all", targets=2, reduce="mean"))
    m.pairing.branches, m.pairing.mixed_as, m.pairing.against = "one", "both", (1,)
    m.pairing.reverse = "both"
    m.join = ConfigDict(dict(encoder="none", heads="none"))
    m.teacher = ConfigDict()
    m.shuffle = False
    m.mixtures = ConfigDict()
    m.mixed_objective = ConfigDict()
    m.evaluate = "features"
    return m


def teach(c: ConfigDict, momentum: float, rule: str) -> None:
    """Gives the method a teacher; rule: constant or cosine, by epochs."""
    c.method.teacher = ConfigDict(dict(momentum=momentum, rule=rule, per="epoch"))


def moco_cifar(name: str, epochs: float, symmetric: bool) -> ConfigDict:
    """MoCo as its CIFAR notebook and Un-Mix's CIFAR scripts have it.

    Split batch norms stand for 8 GPUs; the 128 numbers after the only linear layer are
    the features, of the loss as of kNN. CIFAR-100 keeps CIFAR-10's statistics there.
    """
    view = f"crop(SIZE, scale=(.08, 1), filter='bilinear') | flip | {JITTER} | gray(.2)"
    c = small(name, view, batch=512, epochs=epochs)
    if name == "c100":
        own = SETS[name]["stats"]
        c.data.views = tuple(v.replace(own, CIFAR10) for v in c.data.views)
        c.data.eval_view = c.data.eval_view.replace(own, CIFAR10)
    c.model.norm.groups = 8
    c.model.projector = common.projector((128,), False, "none")
    m = c.method
    m.objective = ConfigDict(dict(name="moco", queue=4096, temperature=0.1))
    m.pairing.pairs = "all" if symmetric else "forward"
    m.pairing.reduce, m.pairing.mixed_as = "sum", "online"
    m.pairing.against = (1, 0) if symmetric else (1,)
    teach(c, 0.99, "constant")
    m.shuffle, m.evaluate = True, "projection"
    c.optim = common.sgd(5e-4)
    c.schedule = common.warmup_cosine(0.03, "batch/256", 0.0)
    c.schedule.per, c.schedule.first_epoch = "epoch", 1
    return c


def htdt(name: str, epochs: float, batch: int) -> ConfigDict:
    """The frame of htdt/self-supervised, the code of W-MSE: Adam, heads of 1024.

    500 steps of warm-up, then a constant rate that drops 50 and 25 epochs before the
    end. Un-Mix and MixMask take SimCLR, BYOL and W-MSE from it.
    """
    view = f"{JITTER} | gray(.1) | crop(SIZE, scale=(.2, 1)) | flip"
    c = small(name, view, batch, epochs)
    out = 64 if name in ("c10", "c100") else 128
    c.model.projector = common.projector((1024, out), True, "none")
    c.optim = common.adam(1e-6)
    steps = {"c10": 50_000, "c100": 50_000, "stl": 105_000, "tiny": 100_000}
    warmup = 500 / (steps[name] // batch)
    rate = 3e-3 if name in ("c10", "c100") else 2e-3
    c.schedule = common.warmup_steps(rate, "none", warmup, (-50.0, -25.0), 0.2)
    c.schedule.warmup_rule = "one_ahead"
    c.evals.knn = common.knn(k=5, temperature=1.0, every_epochs=10.0)
    c.evals.knn.vote = "majority"
    return c


def simclr(name: str, epochs: float) -> ConfigDict:
    """SimCLR in HTDT's frame: the head and its last norm see two branches at once."""
    c = htdt(name, epochs, batch=512)
    c.model.projector.last_norm = "affine"
    objective = dict(name="simclr", temperature=0.5, candidates="both")
    c.method.objective = ConfigDict(objective)
    c.method.join.heads = "call"
    return c


def byol(name: str, epochs: float) -> ConfigDict:
    """BYOL in HTDT's frame."""
    c = htdt(name, epochs, batch=512)
    out = c.model.projector.widths[-1]
    c.model.predictor = common.projector((1024, out), True, "none")
    c.method.objective = ConfigDict(dict(name="cosine", loss="distance"))
    c.method.pairing.reduce = "sum"
    teach(c, 0.99, "cosine")
    return c


def wmse(name: str, epochs: float, views: int) -> ConfigDict:
    """W-MSE in HTDT's frame with 2 views of 512 images or 4 of 256."""
    c = htdt(name, epochs, batch=512 if views == 2 else 256)
    c.data.views = c.data.views[:1] * views
    cifar = name in ("c10", "c100")
    objective = dict(name="wmse", size=128 if cifar else 256, eps=0.0, loss="distance")
    objective["iterations"] = 4 if views == 2 and not cifar else 1
    c.method.objective = ConfigDict(objective)
    c.method.pairing.pairs = "forward"
    c.method.join.heads = "call"
    return c


def simsiam_cifar(name: str, epochs: float) -> ConfigDict:
    """SimSiam at CIFAR size, as behind MixMask's table 5: two layers, 128 numbers.

    As PatrickHua/SimSiam has it: the predictor keeps its rate, pictures are normalised
    by ImageNet's statistics, and the stem starts as the network's other convolutions.
    """
    view = f"crop(SIZE, scale=(.2, 1), filter='bilinear') | flip | {JITTER} | gray(.2)"
    c = small(name, view, batch=512, epochs=epochs)
    own = SETS[name]["stats"]
    c.data.views = tuple(v.replace(own, IMAGENET) for v in c.data.views)
    c.data.eval_view = c.data.eval_view.replace(own, IMAGENET)
    c.model.encoder.stem_init = "kaiming"
    c.model.projector = common.projector((2048, 128), True, "affine")
    c.model.predictor = common.projector((512, 128), True, "none")
    c.method.objective = ConfigDict(dict(name="cosine", loss="negative"))
    c.optim = common.sgd(5e-4)
    c.optim.lr_rules = (("^predictor/", "peak"),)
    c.schedule = common.warmup_cosine(0.03, "batch/256", 10.0)
    c.schedule.warmup_rule = "both_ends"
    return c


def swav_cifar(name: str, epochs: float) -> ConfigDict:
    """SwAV as in Un-Mix's CIFAR scripts: bottleneck blocks, 100 prototypes.

    Their queue of 120 is rounded down to none at batch 128.
    """
    view = f"crop(SIZE, scale=(.14, 1), filter='bilinear') | flip | {JITTER} | gray(.2)"
    c = small(name, view, batch=128, epochs=epochs)
    own = SETS[name]["stats"]
    c.data.views = tuple(v.replace(own, CIFAR10) for v in c.data.views)
    c.data.eval_view = c.data.eval_view.replace(own, CIFAR10)
    c.model.encoder = common.resnet(26, (32, 32), "swav")
    c.model.projector = common.projector((512, 128), True, "none")
    swav(c, prototypes=100, queue=120, frozen=5005 / 390)
    c.schedule = common.warmup_cosine(0.6, "none", 5.0)
    c.schedule.floor, c.schedule.warmup_rule = 6e-4, "both_ends"
    return c


def swav(c: ConfigDict, prototypes: int, queue: int, frozen: float) -> None:
    """SwAV's method and optimizer; frozen: epochs before prototypes learn."""
    c.model.prototypes = common.prototypes(prototypes)
    objective = dict(name="swav", temperature=0.1, epsilon=0.05, iterations=3)
    objective |= dict(queue=queue, queue_start_epochs=15.0)
    c.method.objective = ConfigDict(objective)
    c.method.join = ConfigDict(dict(encoder="all", heads="all"))
    c.optim = common.larc(1e-6)
    c.optim.freeze_rules = (("^prototypes/", frozen),)
    c.optim.unit_rules = ("^prototypes/kernel",)


def moco_imagenet(version: int, epochs: float) -> ConfigDict:
    """MoCo v1 or v2 on ImageNet-1K: 8 GPUs of 32 images, rate 0.03 for 256."""
    color = "jitter(.4, .4, .4, .1, p=.8) | gray(.2) | blur(p=.5)"
    color = "gray(.2) | jitter(.4, .4, .4, .4)" if version == 1 else color
    crop = "decode_crop(224, scale=(.2, 1), filter='bilinear')"
    c = imagenet(f"{crop} | {color} | flip | normalize", 256, epochs)
    widths = (128,) if version == 1 else (2048, 128)
    c.model.projector = common.projector(widths, False, "none")
    m = c.method
    temperature = 0.07 if version == 1 else 0.2
    m.objective = ConfigDict(dict(name="moco", queue=65536, temperature=temperature))
    m.pairing.pairs, m.pairing.reduce = "forward", "sum"
    m.pairing.mixed_as = "online"
    teach(c, 0.999, "constant")
    m.shuffle = True
    c.optim = common.sgd(1e-4)
    if version == 1:
        drops = (120.0, 160.0)
        c.schedule = common.warmup_steps(0.03, "batch/256", 0.0, drops, 0.1)
    else:
        c.schedule = common.warmup_cosine(0.03, "batch/256", 0.0)
    c.schedule.per = "epoch"
    return c


def simsiam_imagenet(epochs: float) -> ConfigDict:
    """SimSiam on ImageNet-1K as its own code has it, with batch norms of all GPUs."""
    color = "jitter(.4, .4, .4, .1, p=.8) | gray(.2) | blur(p=.5)"
    crop = "decode_crop(224, scale=(.2, 1), filter='bilinear')"
    c = imagenet(f"{crop} | {color} | flip | normalize", 512, epochs)
    c.model.norm.groups = 1
    c.model.encoder.zero_init = True
    c.model.projector = common.projector((2048, 2048, 2048), True, "plain")
    c.model.projector.hidden_bias = c.model.projector.last_bias = False
    c.model.predictor = common.projector((512, 2048), True, "none")
    c.model.predictor.hidden_bias = False
    c.method.objective = ConfigDict(dict(name="cosine", loss="negative"))
    c.optim = common.sgd(1e-4)
    c.optim.lr_rules = (("^predictor/", "peak"),)
    c.schedule = common.warmup_cosine(0.05, "batch/256", 0.0)
    c.schedule.per = "epoch"
    return c


def swav_imagenet(epochs: float) -> ConfigDict:
    """SwAV on ImageNet-1K at batch 256: 2 crops of 224 pixels and 6 of 96."""
    stats = "normalize((.485, .456, .406), (.228, .224, .225))"
    color = "jitter(.8, .8, .8, .2, p=.8) | gray(.2) | blur(p=.5)"
    view = "decode_crop({}, scale={}, filter='bilinear') | flip | {} | {}"
    c = imagenet("", 256, epochs)
    large = view.format(224, "(.14, 1)", color, stats)
    little = view.format(96, "(.05, .14)", color, stats)
    c.data.views = (large,) * 2 + (little,) * 6
    c.data.eval_view = f"decode_center(224, resize_to=256) | {stats}"
    c.model.norm.groups = 1
    c.model.projector = common.projector((2048, 128), True, "none")
    swav(c, prototypes=3000, queue=3840, frozen=5005 / 5004)
    c.schedule = common.warmup_cosine(0.6, "none", 0.0)
    c.schedule.floor = 6e-4
    return c


# --- mixtures ------------------------------------------------------------------------


def mix(
    c: ConfigDict,
    variant: ConfigDict,
    *,
    grid: int,
    probability: float,
    fields: dict | None = None,
) -> ConfigDict:
    """Adds the mixture that a recipe's variants name.

    grid: cells of MixMask's masks along a side, discrete if 2; 8 is ImageNet, where
    pairs are formed within each of 8 GPUs. probability: of Mixup in Un-Mix alone;
    beside MixMask it is 0.5 for every set (MixMask, table 3). fields: of the mixture,
    beside or instead of these.
    """
    m, name, fields = c.method, variant.mixture, fields or {}
    # Every GPU drew for itself, but for SwAV, whose code seeds all alike.
    local = dict(shared=m.objective.name == "swav", groups=8 if grid == 8 else 1)
    masks = dict(grid=grid, kind="discrete" if grid == 2 else "block")
    masks["ratio"] = kept(variant.ratio)
    unmix = dict(name="unmix", gamma=1.0, permutation="reverse", **local)
    mixmask = dict(name="mixmask", permutation="reverse", **masks, **local)
    known = {
        "none": {},
        "unmix": {"unmix": unmix | {"probability": probability}},
        "mixmask": {"mixmask": mixmask},
        "both": {
            "unmix": unmix | {"probability": 0.5},
            "mixmask": mixmask | {"permutation": "random"},
        },
        "erase": {"erase": dict(name="erase", fill="zero", **masks, **local)},
        "mixup_cutmix": {"mixup_cutmix": common.mixup_cutmix(0.8, 1.0, chunk=32)},
    }
    if fields and name in ("none", "both"):
        raise ValueError(f"mixture={name} has no fields, so mixture.FIELD has no place")
    if name in known:
        sections = known[name]
        if fields:
            sections = {name: ConfigDict(dict(sections[name]) | fields)}
    else:
        sections = {name: common.mixture(name, fields, **local)}
    m.mixtures = ConfigDict(sections)
    common.choice("branches", variant.branches, {"one": 1, "both": 2})
    m.pairing.branches = variant.branches
    return c


def swap(c: ConfigDict, name: str, fields: dict) -> ConfigDict:
    """Gives a recipe another backbone, or fields of its own one other values.

    Projector, teacher and optimizer stay: they follow from what the backbone returns.
    """
    old = c.model.encoder
    if name:
        c.model.encoder = common.encoder(name, old.image_size, fields)
    if name == "vit":  # which has attention maps instead of a map of its last stage
        c.evals.attention = common.attention(c.evals.activation.every_epochs)
        del c.evals.activation
    if fields and not name:
        c.model.encoder = ConfigDict(old.to_dict() | fields)
    return c


def kept(text: str) -> float | tuple[float, float]:
    """ ".5" -> 0.5, ".25-.75" -> (0.25, 0.75)."""
    low, dash, high = text.partition("-")
    try:
        return (float(low), float(high)) if dash else float(low)
    except ValueError as error:
        raise ValueError(f"ratio={text}: write a share, .5, or two, .25-.75") from error


GRIDS = {"c10": 2, "c100": 2, "stl": 4, "tiny": 4}


def recipe(framework, name: str, arg: str, *, epochs: int, **variants) -> ConfigDict:
    """A recipe of a small set: framework(name, epochs, **variants), and a mixture."""
    make = lambda **fields: framework(name, **fields)
    return assemble(make, arg, epochs, variants, grid=GRIDS[name], probability=0.5)


def large(framework, arg: str, *, epochs: int, **variants) -> ConfigDict:
    """A recipe of ImageNet-1K: framework(epochs, **variants), and a mixture."""
    return assemble(framework, arg, epochs, variants, grid=8, probability=0.0)


def assemble(framework, arg, epochs, variants, **settings) -> ConfigDict:
    """A framework in the variants of `arg`, its encoder and its mixture."""
    arg, fields = common.parts_of(arg, *PARTS)
    chosen = common.arguments(arg, epochs=epochs, encoder="", **variants, **MIXTURES)
    c = framework(epochs=float(chosen.epochs), **{key: chosen[key] for key in variants})
    swap(c, chosen.encoder, fields["encoder"])
    return mix(c, chosen, fields=fields["mixture"], **settings)
