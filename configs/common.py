"""What recipes share: the parts of a config that papers do not speak of."""

import difflib

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def arguments(text: str, **defaults) -> ConfigDict:
    """Parses the part of --config=file.py:ARG after the colon, "a=1,b=2".

    defaults: the variants that a recipe has, each with its usual value, whose type the
    given value takes. ValueError names an unknown one, and the nearest.
    """
    chosen = dict(defaults)
    for pair in filter(None, (text or "").split(",")):
        name, equals, value = pair.partition("=")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1, 0.4) or list(defaults)
            raise ValueError(f"variant {name!r} is unknown; there is {', '.join(near)}")
        kind = type(defaults[name])
        if kind is bool:
            if value not in ("", "0", "1", "true", "false"):
                raise ValueError(f"variant {pair!r}: write {name}=1 or {name}=0")
            chosen[name] = value in ("", "1", "true")
            continue
        try:
            chosen[name] = kind(value)
        except ValueError as error:
            raise ValueError(
                f"variant {pair!r}: not of type {kind.__name__}"
            ) from error
    return ConfigDict(chosen)


def parts_of(text: str, *prefixes: str) -> tuple[str, dict[str, dict]]:
    """Takes "PREFIX.FIELD=VALUE" out of a recipe's argument: (rest, {prefix: fields}).

    "epochs=9,encoder.depths=3-3-9" with the prefix "encoder" gives "epochs=9" and
    {"encoder": {"depths": (3, 3, 9)}}; see value_of.
    """
    rest, fields = [], {prefix: {} for prefix in prefixes}
    for pair in filter(None, (text or "").split(",")):
        prefix, dot, name = pair.partition("=")[0].partition(".")
        if dot and prefix in fields:
            fields[prefix][name] = value_of(pair.partition("=")[2])
        else:
            rest.append(pair)
    return ",".join(rest), fields


def value_of(text: str) -> bool | int | float | tuple | str:
    """A field's value as it is written: 3, .5, true, 3-3-9 for (3, 3, 9), else text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    numbers = tuple(map(value_of, text.split("-"))) if "-" in text else ()
    return numbers if numbers and not any(isinstance(n, str) for n in numbers) else text


def choice(variant: str, value: str, known: dict):
    """known[value]; ValueError names an unknown value of a variant, and the nearest."""
    if value not in known:
        near = difflib.get_close_matches(value, known, 1, 0.4) or list(known)
        raise ValueError(f"{variant}={value} is unknown; there is {', '.join(near)}")
    return known[value]


def base() -> ConfigDict:
    """The frame of every recipe; each overwrites what its paper says otherwise."""
    c = ConfigDict()
    c.seed = 0
    c.init_from = ""  # another workdir, whose parts of the same shape come over
    c.steps = placeholder(int)  # instead of `epochs`: the whole recipe in so many steps
    c.accumulate = 1  # parts of the batch that go through one after the other
    c.mesh = ConfigDict()
    c.mesh.fsdp = 1  # devices that share one copy of the parameters
    c.mesh.rules = (("kernel$|pos_embed$", "split"),)  # what fsdp > 1 cuts
    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 1.0
    c.checkpoint.keep = 2  # the newest ones
    c.checkpoint.keep_every_epochs = 0.0  # and these for good; 0: none
    c.watchdog = ConfigDict()  # what ends a run that no longer moves; 0: never
    c.watchdog.step_factor = 20.0  # times the median that a step may take,
    c.watchdog.step_seconds = 300.0  # but at least so long
    c.watchdog.other_seconds = 3600.0  # start, compilation, each part of an evaluation
    c.watchdog.peer_seconds = 120.0  # that a process may give no sign of life
    c.log = ConfigDict()
    c.log.every = 50  # steps to a line of metrics.jsonl
    c.log.seconds = 15.0  # to a line on the console
    return c


def data(source: str, split: str, eval_split: str) -> ConfigDict:
    """Where pictures come from and how they are read; views are the recipe's."""
    c = ConfigDict()
    c.source = source
    c.directory = ""  # of TFDS sets; "" is TFDS's own default
    c.split, c.eval_split = split, eval_split
    c.on_device = False  # keep the whole set in the devices' memory
    c.threads = 16  # that read and decode
    c.prefetch = 2  # batches read ahead
    return c


def knn(k: int, temperature: float, every_epochs: float) -> ConfigDict:
    """Weighted kNN on the features while training."""
    c = ConfigDict()
    c.name = "knn"
    c.vote = "weighted"  # "majority": plain votes by distance, no temperature
    c.every_epochs = every_epochs
    c.at_start = True
    c.k, c.temperature = k, temperature
    c.bank = 0  # training examples to compare with, spread evenly; 0: all
    c.queries = 0  # held-out examples, likewise
    c.chunk = 512  # queries at a time
    return c


def pictures(every_epochs: float) -> ConfigDict:
    """Pictures of what the method does."""
    c = ConfigDict()
    c.name = "pictures"
    c.every_epochs = every_epochs
    c.at_start = False
    c.count = 8
    return c


def attention(every_epochs: float) -> ConfigDict:
    """Where the encoder looks."""
    c = pictures(every_epochs)
    c.name = "attention"
    return c


def activation(every_epochs: float) -> ConfigDict:
    """Where a residual encoder is active."""
    c = pictures(every_epochs)
    c.name = "activation"
    return c


def health(every_epochs: float) -> ConfigDict:
    """Whether features have collapsed."""
    c = ConfigDict()
    c.name = "health"
    c.every_epochs = every_epochs
    c.at_start = False  # features of an untrained network may well lie together
    c.examples = 2000  # held-out ones, spread evenly; 0: all
    return c


def histograms(every_epochs: float) -> ConfigDict:
    """Histograms of weights."""
    c = ConfigDict()
    c.name = "histograms"
    c.every_epochs = every_epochs
    c.at_start = False
    c.bins = 30
    return c


def embedding(every_epochs: float) -> ConfigDict:
    """t-SNE of features; needs scikit-learn."""
    c = ConfigDict()
    c.name = "embedding"
    c.every_epochs = every_epochs
    c.at_start = False
    c.points = 2000  # held-out examples, spread evenly; 0: all
    c.perplexity, c.seed = 30.0, 0
    return c


def mixup_cutmix(mixup: float, cutmix: float, chunk: int) -> ConfigDict:
    """Mixup and CutMix as DeiT and MAE mix; chunk: consecutive images with one lam."""
    c = ConfigDict()
    c.name = "mixup_cutmix"
    c.mixup, c.cutmix = mixup, cutmix
    c.probability, c.switch = 1.0, 0.5
    c.mode = "batch"
    c.chunk = chunk
    return c


def mixture(name: str, fields: dict, *, shared: bool, groups: int) -> ConfigDict:
    """A mixture that recipes know by its name alone, a file of mixjax/mixtures.

    fields: those that it has beside the common ones, or instead of their values here.
    """
    section = dict(name=name, permutation="reverse", shared=shared, groups=groups)
    return ConfigDict(section | fields)


VIT_SIZES = {  # width, depth, heads
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
SWIN_SIZES = {  # width of the first stage, depths, heads
    "Ti": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

RESNET_DEPTHS = {  # kind of block, blocks of the stages
    18: ("basic", (2, 2, 2, 2)),
    26: ("bottleneck", (2, 2, 2, 2)),  # what SwAV's CIFAR code calls resnet18
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}


def vit(size: str, image_size: tuple[int, int], patch: int) -> ConfigDict:
    """An encoder of one of the named sizes (Dosovitskiy et al., 2021, table 1)."""
    width, depth, heads = VIT_SIZES[size]
    c = ConfigDict()
    c.name = "vit"
    c.image_size, c.channels, c.patch = image_size, 3, patch
    c.width, c.depth, c.heads, c.mlp_ratio = width, depth, heads, 4.0
    c.drop_path = 0.0
    c.position = "sincos"
    c.pool = "class"
    c.remat, c.scan = "none", False
    return c


def beit(size: str, image_size: tuple[int, int], patch: int) -> ConfigDict:
    """The ViT of BEiT as SimMIM pre-trains it."""
    width, depth, heads = VIT_SIZES[size]
    c = ConfigDict()
    c.name = "beit"
    c.image_size, c.channels, c.patch = image_size, 3, patch
    c.width, c.depth, c.heads, c.mlp_ratio = width, depth, heads, 4.0
    c.layer_scale, c.drop_path = 0.1, 0.1
    c.mask_token = True
    c.pool = "mean"
    c.relative = "shared"
    c.remat, c.scan = "none", False
    return c


def swin(size: str, image_size: tuple[int, int], window: int) -> ConfigDict:
    """A Swin of one of the named sizes (Liu et al., 2021) as SimMIM pre-trains it."""
    width, depths, heads = SWIN_SIZES[size]
    c = ConfigDict()
    c.name = "swin"
    c.image_size, c.channels, c.patch = image_size, 3, 4
    c.width, c.depths, c.heads, c.mlp_ratio = width, depths, heads, 4.0
    c.window = window
    c.drop_path = 0.0
    c.mask_token = True
    c.remat = "none"
    return c


def resnet(depth: int, image_size: tuple[int, int], stem: str) -> ConfigDict:
    """A residual network (He et al., 2016); stem: imagenet, cifar, small or swav."""
    c = ConfigDict()
    c.name = "resnet"
    c.image_size, c.channels = image_size, 3
    c.block, c.layers = RESNET_DEPTHS[depth]
    c.widths = (64, 128, 256, 512)
    c.stem, c.stem_width = stem, 64
    # Code that swaps the stem of a finished network leaves the new one as torch has it.
    c.stem_init = "torch_default" if stem in ("cifar", "small") else "kaiming"
    c.zero_init = False
    c.remat = "none"
    return c


def encoder(name: str, image_size: tuple[int, int], fields: dict) -> ConfigDict:
    """A backbone for images of a size by its name, a file of mixjax/models.

    fields: of its section. Those that are not among them are, for the backbones that
    are known here, the ones of a small network; any other backbone needs all of them.
    """
    small = image_size[0] <= 64
    known = {
        "vit": lambda: vit("Ti" if small else "S", image_size, 4 if small else 16),
        "beit": lambda: beit("Ti" if small else "S", image_size, 4 if small else 16),
        "swin": lambda: swin("Ti", image_size, 4 if small else 7),
        "resnet": lambda: resnet(18, image_size, "cifar" if small else "imagenet"),
    }
    section = dict(name=name, image_size=image_size, channels=3)
    if name in known:
        section = known[name]().to_dict()
    if "drop_path" in section:
        section["drop_path"] = 0.0  # siamese methods draw nothing for it
    return ConfigDict(section | fields)


def norm(groups: int) -> ConfigDict:
    """Batch norms as torch's, each of `groups` parts of a batch by its own statistics.

    1 for SyncBN or one GPU; else the paper's number of GPUs.
    """
    c = ConfigDict()
    c.groups, c.interleaved = groups, False
    c.momentum, c.eps, c.unbiased = 0.9, 1e-5, True
    return c


def projector(widths: tuple[int, ...], hidden_norm: bool, last_norm: str) -> ConfigDict:
    """Linear layers with ReLU between, for `model.projector` and `model.predictor`."""
    c = ConfigDict()
    c.widths = widths
    c.hidden_norm, c.hidden_bias = hidden_norm, True
    c.last_bias, c.last_norm = True, last_norm
    return c


def classifier(classes: int, init_std: float, feature_norm: bool) -> ConfigDict:
    """A linear classifier of features."""
    c = ConfigDict()
    c.classes, c.init_std, c.feature_norm = classes, init_std, feature_norm
    return c


def prototypes(count: int) -> ConfigDict:
    """SwAV's prototypes."""
    c = ConfigDict()
    c.count = count
    return c


def pixel_head() -> ConfigDict:
    """One linear layer from a map to pixels; the images' geometry says how large."""
    return ConfigDict()


def decoder(width: int, depth: int, heads: int) -> ConfigDict:
    """A transformer over all tokens that predicts pixels."""
    c = ConfigDict()
    c.width, c.depth, c.heads, c.mlp_ratio = width, depth, heads, 4.0
    c.remat, c.scan = "none", False
    return c


def adamw(b2: float, weight_decay: float) -> ConfigDict:
    """AdamW with decay on everything but biases and norms."""
    c = ConfigDict()
    c.name = "adamw"
    c.b1, c.b2, c.eps = 0.9, b2, 1e-8
    c.weight_decay = weight_decay
    c.decay_vectors = False
    return rules(c)


def rules(c: ConfigDict) -> ConfigDict:
    """Adds what an optimizer does otherwise for some parameters: nothing, at first."""
    c.decay_exempt = ()
    c.layer_decay = 1.0  # of the rate, from a layer of the encoder to the one before
    c.layers = ()  # the encoder's blocks, of each stage, for layer_decay
    c.lr_rules = ()  # (regex of a path, multiplier or "peak")
    c.freeze_rules = ()  # (regex, epochs without a step at the start)
    c.unit_rules = ()  # regexes of kernels whose columns keep length 1
    c.clip_norm = 0.0  # of all gradients together; 0: as long as they are
    return c


def sgd(weight_decay: float) -> ConfigDict:
    """SGD with momentum 0.9; L2 on everything, norms and biases too, as in torch."""
    c = ConfigDict()
    c.name = "sgd"
    c.nesterov = False
    c.momentum, c.weight_decay, c.decay_vectors = 0.9, weight_decay, True
    return rules(c)


def adam(weight_decay: float) -> ConfigDict:
    """Adam with L2 in the gradient, on everything, as in torch."""
    c = ConfigDict()
    c.name = "adam"
    c.b1, c.b2, c.eps = 0.9, 0.999, 1e-8
    c.weight_decay, c.decay_vectors = weight_decay, True
    return rules(c)


def lars(weight_decay: float) -> ConfigDict:
    """MAE's LARS: trust ratio and decay for matrices alone."""
    c = ConfigDict()
    c.name = "lars"
    c.momentum, c.weight_decay, c.decay_vectors = 0.9, weight_decay, False
    c.trust_coefficient = 0.001
    return rules(c)


def larc(weight_decay: float) -> ConfigDict:
    """apex' LARC around SGD, without clipping."""
    c = ConfigDict()
    c.name = "larc"
    c.momentum, c.weight_decay, c.decay_vectors = 0.9, weight_decay, True
    c.trust_coefficient, c.eps = 0.001, 1e-8
    return rules(c)


def warmup_cosine(base: float, rule: str, warmup_epochs: float) -> ConfigDict:
    """Linear warm-up from 0 and half a cosine to 0, in steps."""
    c = ConfigDict()
    c.name = "cosine"
    c.rule, c.base = rule, base
    c.floor, c.restart = 0.0, True
    c.warmup_epochs, c.warmup_start = warmup_epochs, 0.0
    c.warmup_rule = "from_start"
    c.per, c.first_epoch = "step", 0
    return c


def warmup_steps(
    base: float, rule: str, warmup_epochs: float, milestones: tuple, factor: float
) -> ConfigDict:
    """Linear warm-up from 0, then constant but for a factor at each milestone."""
    c = ConfigDict()
    c.name = "steps"
    c.rule, c.base = rule, base
    c.milestones, c.factor = milestones, factor  # in epochs
    c.warmup_epochs, c.warmup_start = warmup_epochs, 0.0
    c.warmup_rule = "from_start"
    c.per, c.first_epoch = "step", 0
    return c


def warmup_polynomial(base: float, rule: str, warmup_epochs: float) -> ConfigDict:
    """A straight fall to 0 from the first step on, times a linear warm-up from 1e-6."""
    c = ConfigDict()
    c.name = "polynomial"
    c.rule, c.base = rule, base
    c.floor, c.power = 0.0, 1.0
    c.warmup_epochs, c.warmup_start = warmup_epochs, 1e-6 * base
    c.warmup_rule = "from_start"
    c.per, c.first_epoch = "step", 0
    return c
