"""What the recipes of masked autoencoders share: frames, and sections by method.

A frame is everything but the method: imagenet() as MAE's code has it, cifar() of our
own. `variants` are the names a recipe takes after the colon of --config=FILE:...
"""

from configs import common
from configs.common import ConfigDict

MIXEDAE = dict(
    r=0.25,  # share of an image in a mixture
    attend="homologous",  # global: the naive baseline; masked_sa
    segment=True,
    recon=True,
    homocon=True,
    mixing=True,
    mode="compose",  # full
    start=0,  # first layer with TopK
    position="encoder",  # of the contrast: decoder, or the number of a layer
    positives="all",  # one, prototype
)
MIMAE = dict(
    ratio=0.75,
    views=4,  # 0: as many as cover the image
    masks="circular",  # independent
    lam1=1.0,
    lam2=1.0,
    lam3=10.0,
    approx=1.0,
    gate="latch",  # instant, open
)
MISIMMIM = dict(lam1=1.0, lam2=1.0, lam3=10.0, approx=1.0, gate="latch")


# --- frames --------------------------------------------------------------------------


def imagenet(size: str, patch: int, epochs: float) -> ConfigDict:
    """MAE's recipe for ImageNet-1K with a ViT of `size` (He et al., table 8)."""
    c = common.base()
    c.epochs = float(epochs)
    c.batch = 4096
    c.data = common.data("tfds:imagenet2012", "train", "validation")
    c.data.views = ("decode_crop(224, scale=(.2, 1)) | flip | normalize",)
    c.data.eval_view = "decode_center(224, resize_to=256) | normalize"
    c.data.eval_batch = 1024
    c.model = ConfigDict()
    c.model.precision = "bfloat16"
    c.model.encoder = common.vit(size, (224, 224), patch)
    c.model.decoder = common.decoder(512, 8, 16)
    c.method = ConfigDict(dict(name="mae", mask_ratio=0.75, norm_pix=True))
    c.optim = common.adamw(b2=0.95, weight_decay=0.05)
    c.schedule = common.warmup_cosine(1.5e-4, "batch/256", warmup_epochs=40.0)
    c.evals = ConfigDict()
    c.evals.knn = common.knn(k=20, temperature=0.07, every_epochs=50.0)
    c.evals.knn.bank = 128_000
    c.evals.pictures = common.pictures(every_epochs=20.0)
    c.evals.attention = common.attention(every_epochs=20.0)
    return c


def cifar(epochs: float) -> ConfigDict:
    """MAE on CIFAR-10 with a ViT-Ti of 4-pixel patches; ours, no paper has it.

    The whole set stays on the device, crops included. Pixels are predicted as they
    are: normalised patch by patch they lack colour, and so would the features. Small
    decoder: with a larger one the first hundred steps or more pass before anything but
    the mean is predicted. Batch and rate: with fewer pictures or larger steps the
    network first unlearns all but brightness.
    """
    c = common.base()
    c.epochs = float(epochs)
    c.batch = 256
    c.data = common.data("npz:cifar10.npz", "train", "test")
    stats = "normalize((.4914, .4822, .4465), (.2023, .1994, .2010))"
    c.data.views = (f"decode | crop(32, scale=(.2, 1)) | flip | {stats}",)
    c.data.eval_view = f"decode | {stats}"
    c.data.eval_batch = 1000
    c.data.on_device = True
    c.model = ConfigDict()
    c.model.precision = "float32"
    c.model.encoder = common.vit("Ti", (32, 32), 4)
    c.model.encoder.pool = "mean"
    c.model.decoder = common.decoder(64, 1, 4)
    c.method = ConfigDict(dict(name="mae", mask_ratio=0.75, norm_pix=False))
    c.optim = common.adamw(b2=0.95, weight_decay=0.05)
    c.schedule = common.warmup_cosine(1e-3, "none", warmup_epochs=20.0)
    c.evals = ConfigDict()
    c.evals.knn = common.knn(k=200, temperature=0.1, every_epochs=100.0)
    c.evals.knn.bank, c.evals.knn.queries = 5000, 10_000
    c.evals.pictures = common.pictures(every_epochs=100.0)
    c.evals.attention = common.attention(every_epochs=100.0)
    c.checkpoint.every_epochs = 25.0
    return c


def simmim_imagenet(encoder: ConfigDict, size: int, epochs: float) -> ConfigDict:
    """SimMIM's recipe of 800 epochs: a constant rate, a tenth of it at the end.

    size: of the pictures. The drop comes after 7/8 of the run.
    """
    c = imagenet("B", 16, epochs)
    c.batch = 2048
    crop = f"decode_crop({size}, scale=(.67, 1), filter='bilinear')"
    c.data.views = (f"{crop} | flip | normalize",)
    resize = round(size * 256 / 224)
    c.data.eval_view = f"decode_center({size}, resize_to={resize}) | normalize"
    del c.model.decoder
    c.model.encoder = encoder
    c.model.pixel_head = common.pixel_head()
    c.method = ConfigDict(dict(name="simmim", mask_ratio=0.6, mask_patch=32))
    c.optim = common.adamw(b2=0.999, weight_decay=0.05)
    c.optim.clip_norm = 5.0
    c.optim.decay_exempt = simmim_exempt(encoder)
    c.schedule = common.warmup_steps(1e-4, "batch/512", 10.0, (epochs * 7 / 8,), 0.1)
    c.schedule.warmup_start = 5e-7
    return c


def simmim_cifar(epochs: float) -> ConfigDict:
    """SimMIM in the frame of cifar(), with SimMIM's form of the ViT-Ti."""
    c = cifar(epochs)
    del c.model.decoder
    c.model.encoder = common.beit("Ti", (32, 32), 4)
    c.model.pixel_head = common.pixel_head()
    c.batch = 128  # the encoder sees all tokens: 15 GB on a CPU
    c.method = ConfigDict(dict(name="simmim", mask_ratio=0.6, mask_patch=8))
    c.optim.clip_norm = 5.0
    c.optim.decay_exempt = simmim_exempt(c.model.encoder)
    return c


def simmim_exempt(encoder: ConfigDict) -> tuple[str, ...]:
    """Which tokens the official code does not decay: Swin's mask, ViT's class token."""
    return ("mask_token",) if encoder.name == "swin" else ("cls_token",)


# --- sections ------------------------------------------------------------------------


def mix(c: ConfigDict, variant: ConfigDict, mask_patch: int) -> ConfigDict:
    """Turns a frame into MixedAE's; mask_patch in pixels."""
    norm_pix = c.method.norm_pix
    m = c.method = ConfigDict()
    m.name = "mixedae"
    m.r, m.mask_patch, m.leftover = variant.r, mask_patch, "random_image"
    m.mixing, m.mix_mode, m.attend = variant.mixing, variant.mode, variant.attend
    m.topk = ConfigDict(dict(k=0, start=variant.start, class_key="keep"))
    m.segment, m.transfer_segment = variant.segment, "none"
    m.recon, m.homocon = variant.recon, variant.homocon
    m.contrast = ConfigDict()
    m.contrast.position, m.contrast.positives = variant.position, variant.positives
    m.contrast.temperature, m.contrast.weight = 0.25, 0.1
    m.norm_pix = norm_pix
    if variant.homocon:
        c.model.token_projector = ConfigDict(dict(hidden=0, width=256))
    return c


def inform(c: ConfigDict, variant: ConfigDict) -> ConfigDict:
    """Adds the information losses to the frame of MI-MAE or MI-SimMIM."""
    m = c.method
    m.information = ConfigDict(
        dict(
            lam1=variant.lam1,
            lam2=variant.lam2,
            lam3=variant.lam3,
            approx=variant.approx,
            temperature=0.07,
            parts=1,
            negatives="views",
            reduce="sum",
        )
    )
    m.gate = ConfigDict(dict(mode=variant.gate, level=0.5, decay=0.99))
    if variant.lam2 or variant.lam3 or variant.approx:
        v = c.model.variational = ConfigDict()
        v.hidden, v.mean_act = 0, "leaky_relu"
        v.variance_act, v.floor = "relu_floor", 1e-2
    return c


def views(c: ConfigDict, variant: ConfigDict) -> ConfigDict:
    """Turns a frame into MI-MAE's."""
    norm_pix = c.method.norm_pix
    m = c.method = ConfigDict(dict(name="mimae", norm_pix=norm_pix))
    m.views, m.mask_ratio, m.mask_mode = variant.views, variant.ratio, variant.masks
    m.latent_pool, m.variational_input = "mean_all", "embedding"
    return inform(c, variant)


# --- recipes -------------------------------------------------------------------------


def mae(size: str, patch: int, arg: str, epochs: int) -> ConfigDict:
    """MAE on ImageNet-1K; the one variant is `epochs`."""
    return imagenet(size, patch, common.arguments(arg, epochs=epochs).epochs)


def mixedae(size: str, arg: str, *, epochs: int, batch: int) -> ConfigDict:
    """MixedAE on ImageNet-1K (table A1): half of MAE's rate.

    Masked self-attention is trained by MAE's recipe, as table A4a has it.
    """
    variant = common.arguments(arg, epochs=epochs, **MIXEDAE)
    c = imagenet(size, 16, variant.epochs)
    c.batch = batch
    c.schedule.base = 1.5e-4 if variant.attend == "masked_sa" else 7.5e-5
    return mix(c, variant, mask_patch=32)


def mimae(size: str, arg: str, *, epochs: int) -> ConfigDict:
    """MI-MAE on ImageNet-1K (section 5.1): 1024 images in N views.

    The rate counts views, so that steps and rate are those of MAE at equal views.
    """
    variant = common.arguments(arg, epochs=epochs, **MIMAE)
    c = imagenet(size, 16, variant.epochs)
    c.batch = 1024
    each = variant.views or 4
    c.schedule.base, c.schedule.warmup_epochs = 1.5e-4 * each, 40.0 / each
    return views(c, variant)


def misimmim(encoder: ConfigDict, size: int, arg: str, *, epochs: int) -> ConfigDict:
    """MI-SimMIM (MI-MAE, section 5.1): 1024 images in 2 views, half of the epochs."""
    variant = common.arguments(arg, epochs=epochs, **MISIMMIM)
    c = simmim_imagenet(encoder, size, variant.epochs)
    c.batch = 1024
    c.schedule.base, c.schedule.warmup_epochs = 2e-4, 5.0
    c.method.name, c.method.mask_ratio = "misimmim", 0.5
    return inform(c, variant)
