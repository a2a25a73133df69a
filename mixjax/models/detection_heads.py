"""Heads of two-stage detectors: proposals from maps, boxes and masks from regions.

Faster R-CNN (Ren et al., 2015), Mask R-CNN (He et al., 2017) and ViTDet (Li et al.,
2022) in detectron2's form; a convolution has a bias if and only if no norm follows it.
Kernels start as there: normal by fan-out for convolutions (Caffe2's MSRA fill), uniform
by fan-in for linear layers (its Xavier fill), narrow normals for what predicts. All
predictions are float32. Departures: none.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models.linear import dense
from mixjax.models.pyramids import Deconv
from mixjax.models.resnet import KAIMING
from mixjax.models.vit import layer_norm

Array = jax.Array
NORMS = ("none", "layer", "batch")
ZEROS = nn.initializers.zeros
# Torch counts a deconvolution's fan-out along the axis that is our fan-in.
MSRA_UP = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
XAVIER_FILL = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def check_counts(section: str, **fields: tuple[int, int]) -> None:
    """UsageError for a field of `section` below its bound; fields: (value, bound)."""
    for field, (value, bound) in fields.items():
        if value < bound:
            raise UsageError(f"{section}.{field}={value} must be {bound} up.")


def narrow(std: float) -> Callable:
    """Kernels from N(0, std^2), as layers have them that predict."""
    return nn.initializers.normal(std)


class RPNHead(nn.Module):
    """Maps of any strides -> an objectness and a box for every anchor of each place.

    The maps are outputs["pyramid"], or outputs["map"] alone, all of one width; the
    layers are shared by all of them.
    """

    convs: int  # 3x3, each with a ReLU
    width: int
    anchors: int  # of a place
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        fields = {"convs": (self.convs, 0), "width": (self.width, 1)}
        check_counts("model.rpn_head", **fields, anchors=(self.anchors, 1))

    @nn.compact
    def __call__(self, outputs: dict, *, train: bool) -> dict:
        """rpn_logits: a tuple of [B, n A], rpn_deltas: of [B, n A, 4], float32.

        n places of a map, A anchors; in the order (row, column, anchor).
        """
        maps = outputs["pyramid"] if "pyramid" in outputs else (outputs["map"],)

        def layer(width, side, name):
            options = {"kernel_init": narrow(0.01), "dtype": self.dtype, "name": name}
            return nn.Conv(width, (side, side), padding=side // 2, **options)

        convs = [layer(self.width, 3, f"conv{i + 1}") for i in range(self.convs)]
        logits = layer(self.anchors, 1, "logits")
        deltas = layer(4 * self.anchors, 1, "deltas")
        predictions = {"rpn_logits": [], "rpn_deltas": []}
        for x in maps:
            for conv in convs:
                x = nn.relu(conv(x))
            flat = logits(x).reshape(len(x), -1)  # [B, n A]
            predictions["rpn_logits"].append(flat.astype(jnp.float32))
            flat = deltas(x).reshape(len(x), -1, 4)  # [B, n A, 4]
            predictions["rpn_deltas"].append(flat.astype(jnp.float32))
        return {name: tuple(values) for name, values in predictions.items()}


class Convs(nn.Module):
    """Regions [R, P, P, C] -> [R, P, P, width] by 3x3 convolutions, norms and ReLUs."""

    count: int
    width: int
    norm_kind: str  # "none", "layer" (over channels, epsilon 1e-6) or "batch"
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, valid: Array | None) -> Array:
        """valid: [R] bool, the rows that count in batch statistics; None: all."""
        for i in range(1, self.count + 1):
            options = {"use_bias": self.norm_kind == "none", "kernel_init": KAIMING}
            options |= {"padding": 1, "dtype": self.dtype, "name": f"conv{i}"}
            x = nn.Conv(self.width, (3, 3), **options)(x)
            if self.norm_kind == "layer":
                x = layer_norm(self.dtype, f"norm{i}")(x)
            if self.norm_kind == "batch":
                options = {"affine": True, "scale_init": nn.initializers.ones}
                weights = None if valid is None else valid[:, None, None]  # [R, 1, 1]
                x = self.norm(**options, name=f"norm{i}")(
                    x, train=train, weights=weights
                )
            x = nn.relu(x)
        return x


class BoxHead(nn.Module):
    """Regions [R, P, P, C] -> scores of the classes and boxes, relative to the regions.

    Convolutions, then linear layers with ReLU on all places of a region, flattened as
    (row, column, channel); torch has (channel, row, column), so its first kernel has to
    be permuted. Without linear layers it is the mean over the places (form C4).
    """

    convs: int
    width: int  # of the convolutions
    fcs: int
    fc_width: int
    classes: int  # without the background
    agnostic: bool  # one box for all classes
    norm_kind: str
    norm: Callable
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.box_head.norm_kind", self.norm_kind, NORMS)
        fields = {"convs": (self.convs, 0), "fcs": (self.fcs, 0)}
        fields |= {"width": (self.width, min(self.convs, 1))}  # 0 where it is not used
        fields |= {"fc_width": (self.fc_width, min(self.fcs, 1))}
        check_counts("model.box_head", **fields, classes=(self.classes, 1))

    @nn.compact
    def __call__(
        self, outputs: dict, *, train: bool, regions: Array, valid: Array | None = None
    ) -> dict:
        """class_logits [R, K + 1], the background last, and box_deltas, float32.

        valid: see Convs. box_deltas: [R, 4 K], by class, or [R, 4].
        """
        settings = self.convs, self.width, self.norm_kind, self.norm, self.dtype
        x = Convs(*settings, name="convs")(regions, train, valid)
        if self.fcs:
            x = x.reshape(len(x), -1)  # [R, P P C]
        else:
            x = x.astype(jnp.float32).mean(axis=(1, 2))  # [R, C]
        for i in range(1, self.fcs + 1):
            fill = {"kernel_init": XAVIER_FILL}
            x = nn.relu(dense(self.fc_width, self.dtype, f"fc{i}", **fill)(x))
        boxes = 4 if self.agnostic else 4 * self.classes
        settings = {"kernel_init": narrow(0.01)}
        logits = dense(self.classes + 1, self.dtype, "logits", **settings)(x)
        settings = {"kernel_init": narrow(0.001)}
        deltas = dense(boxes, self.dtype, "deltas", **settings)(x)
        predictions = {"class_logits": logits, "box_deltas": deltas}
        return {name: value.astype(jnp.float32) for name, value in predictions.items()}


class MaskHead(nn.Module):
    """Regions [R, P, P, C] -> a mask of each class of twice the side."""

    convs: int
    width: int  # of the convolutions, and of the deconvolution
    classes: int
    norm_kind: str
    norm: Callable
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.mask_head.norm_kind", self.norm_kind, NORMS)
        fields = {"convs": (self.convs, 0), "width": (self.width, 1)}
        check_counts("model.mask_head", **fields, classes=(self.classes, 1))

    @nn.compact
    def __call__(
        self, outputs: dict, *, train: bool, regions: Array, valid: Array | None = None
    ) -> dict:
        """mask_logits [R, 2 P, 2 P, K] float32; valid: see Convs."""
        settings = self.convs, self.width, self.norm_kind, self.norm, self.dtype
        x = Convs(*settings, name="convs")(regions, train, valid)
        up = Deconv(self.width, MSRA_UP, ZEROS, self.dtype, name="deconv")
        x = nn.relu(up(x))
        settings = {"kernel_init": narrow(0.001), "dtype": self.dtype, "name": "logits"}
        x = nn.Conv(self.classes, (1, 1), **settings)(x)
        return {"mask_logits": x.astype(jnp.float32)}
