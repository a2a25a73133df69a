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


def vit(size: str, image_size: tuple[int, int], patch: int) -> ConfigDict:
    """An encoder of one of the named sizes (Dosovitskiy et al., 2021, table 1)."""
    width, depth, heads = {
        "Ti": (192, 12, 3),
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "H": (1280, 32, 16),
    }[size]
    c = ConfigDict()
    c.name = "vit"
    c.image_size, c.channels, c.patch = image_size, 3, patch
    c.width, c.depth, c.heads, c.mlp_ratio = width, depth, heads, 4.0
    c.position = "sincos"
    c.pool = "class"
    c.remat, c.scan = "none", False
    return c


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
    c.decay_exempt = ()
    c.lr_rules = ()
    return c


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


def masked_imagenet(size: str, patch: int, arg: str, *, epochs: int) -> ConfigDict:
    """MAE's recipe for ImageNet-1K with a ViT of `size` (He et al., table 8).

    arg: a recipe's argument, whose one variant is `epochs`.
    """
    variant = arguments(arg, epochs=epochs)
    c = base()
    c.epochs = float(variant.epochs)
    c.batch = 4096
    c.data = data("tfds:imagenet2012", "train", "validation")
    c.data.views = ("decode_crop(224, scale=(.2, 1)) | flip | normalize",)
    c.data.eval_view = "decode_center(224, resize_to=256) | normalize"
    c.data.eval_batch = 1024
    c.model = ConfigDict()
    c.model.precision = "bfloat16"
    c.model.encoder = vit(size, (224, 224), patch)
    c.model.decoder = decoder(512, 8, 16)
    c.method = ConfigDict(dict(name="mae", mask_ratio=0.75, norm_pix=True))
    c.optim = adamw(b2=0.95, weight_decay=0.05)
    c.schedule = warmup_cosine(1.5e-4, "batch/256", warmup_epochs=40.0)
    c.evals = ConfigDict()
    c.evals.knn = knn(k=20, temperature=0.07, every_epochs=50.0)
    c.evals.knn.bank = 128_000
    c.evals.pictures = pictures(every_epochs=20.0)
    return c
