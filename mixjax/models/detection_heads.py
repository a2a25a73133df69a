"""Heads of two-stage detectors: proposals from maps, boxes and masks from regions.

Faster R-CNN (Ren et al., 2015), Mask R-CNN (He et al., 2017) and ViTDet (Li et al.,
2022) as implemented in detectron2. A convolution has a bias if and only if no norm
follows it. Kernels are initialized as in detectron2: normal by fan-out in convolutions
(Caffe2's MSRA fill), uniform by fan-in in linear layers (Caffe2's Xavier fill), and
normal with a small deviation in prediction layers. All predictions are float32.
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
# MSRA fill goes by fan-out, but torch stores the kernels of deconvolutions with input
# and output channels swapped, so what it counts as fan-out is fan-in here.
MSRA_UP = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
XAVIER_FILL = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def check_counts(section: str, **fields: tuple[int, int]) -> None:
    """Raises UsageError if a field of `section` is below its minimum.

    fields: name -> (value, minimum).
    """
    for field, (value, minimum) in fields.items():
        if value < minimum:
            raise UsageError(f"{section}.{field}={value} must be at least {minimum}.")


class RPNHead(nn.Module):
    """Predicts an objectness and a box for every anchor at each position of the maps.

    The maps are outputs["pyramid"] or, without one, outputs["map"]. They may differ in
    stride but not in width, because they share the layers.
    """

    convs: int  # 3x3 convolutions, each followed by a ReLU
    width: int
    anchors: int  # per position
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        fields = {"convs": (self.convs, 0), "width": (self.width, 1)}
        check_counts("model.rpn_head", **fields, anchors=(self.anchors, 1))

    @nn.compact
    def __call__(self, outputs: dict, *, train: bool) -> dict:
        """Returns rpn_logits and rpn_deltas, tuples with one float32 array per map.

        Their shapes are [B, n A] and [B, n A, 4], with n positions in the map and A
        anchors per position, ordered by (row, column, anchor).
        """
        maps = outputs["pyramid"] if "pyramid" in outputs else (outputs["map"],)

        def layer(width, side, name):
            return nn.Conv(
                width,
                (side, side),
                padding=side // 2,
                kernel_init=nn.initializers.normal(0.01),
                dtype=self.dtype,
                name=name,
            )

        convs = [layer(self.width, 3, f"conv{i + 1}") for i in range(self.convs)]
        logits = layer(self.anchors, 1, "logits")
        deltas = layer(4 * self.anchors, 1, "deltas")
        predictions = {"rpn_logits": [], "rpn_deltas": []}
        for x in maps:  # [B, h, w, C]
            for conv in convs:
                x = nn.relu(conv(x))
            flat = logits(x).reshape(len(x), -1)  # [B, n A]
            predictions["rpn_logits"].append(flat.astype(jnp.float32))
            flat = deltas(x).reshape(len(x), -1, 4)  # [B, n A, 4]
            predictions["rpn_deltas"].append(flat.astype(jnp.float32))
        return {name: tuple(arrays) for name, arrays in predictions.items()}


class Convs(nn.Module):
    """3x3 convolutions with norms and ReLUs: [R, P, P, C] -> [R, P, P, width]."""

    count: int
    width: int
    norm_kind: str  # "none", "layer" (over channels, epsilon 1e-6) or "batch"
    norm: Callable  # see norms.make_norm
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool, valid: Array | None) -> Array:
        """Applies the layers to x, the features of the regions.

        valid: [R] bool, the regions that count in batch statistics; None for all.
        """
        for i in range(1, self.count + 1):
            x = nn.Conv(
                self.width,
                (3, 3),
                padding=1,
                use_bias=self.norm_kind == "none",
                kernel_init=KAIMING,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            if self.norm_kind == "layer":
                x = layer_norm(self.dtype, f"norm{i}")(x)
            if self.norm_kind == "batch":
                # One weight per position: padded regions must not shift the moments.
                weights = None if valid is None else valid[:, None, None]  # [R, 1, 1]
                norm = self.norm(
                    affine=True, scale_init=nn.initializers.ones, name=f"norm{i}"
                )
                x = norm(x, train=train, weights=weights)
            x = nn.relu(x)
        return x


class BoxHead(nn.Module):
    """Classifies regions [R, P, P, C] and predicts boxes relative to them.

    Convolutions come first, then linear layers with ReLUs on the flattened region. It
    is flattened as (row, column, channel), in torch as (channel, row, column), so the
    first linear kernel has to be permuted when weights are imported. Without linear
    layers the features are averaged over the positions, as in the C4 models.
    """

    convs: int
    width: int  # of the convolutions
    fcs: int  # number of linear layers before the predictions
    fc_width: int
    classes: int  # without the background
    agnostic: bool  # one box per region instead of one per class
    norm_kind: str
    norm: Callable
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.box_head.norm_kind", self.norm_kind, NORMS)
        fields = {"convs": (self.convs, 0), "fcs": (self.fcs, 0)}
        # A width may be 0 if there are no layers that use it.
        fields |= {"width": (self.width, min(self.convs, 1))}
        fields |= {"fc_width": (self.fc_width, min(self.fcs, 1))}
        check_counts("model.box_head", **fields, classes=(self.classes, 1))

    @nn.compact
    def __call__(
        self, outputs: dict, *, train: bool, regions: Array, valid: Array | None = None
    ) -> dict:
        """Returns class_logits and box_deltas in float32.

        class_logits: [R, K + 1], the background last.
        box_deltas: [R, 4 K], grouped by class, or [R, 4] if class-agnostic.
        valid: see Convs.
        """
        settings = self.convs, self.width, self.norm_kind, self.norm, self.dtype
        x = Convs(*settings, name="convs")(regions, train, valid)  # [R, P, P, C]
        if self.fcs:
            x = x.reshape(len(x), -1)  # [R, P P C]
        else:
            x = x.astype(jnp.float32).mean(axis=(1, 2))  # [R, C]

        def layer(width, name, kernel_init):
            return dense(width, self.dtype, name, kernel_init=kernel_init)

        for i in range(1, self.fcs + 1):
            x = nn.relu(layer(self.fc_width, f"fc{i}", XAVIER_FILL)(x))
        box_width = 4 if self.agnostic else 4 * self.classes
        normal = nn.initializers.normal
        logits = layer(self.classes + 1, "logits", normal(0.01))(x)
        # Smaller still, so that the first predicted boxes are close to the regions.
        deltas = layer(box_width, "deltas", normal(0.001))(x)
        return {
            "class_logits": logits.astype(jnp.float32),
            "box_deltas": deltas.astype(jnp.float32),
        }


class MaskHead(nn.Module):
    """Predicts a mask per class, at twice the resolution of regions [R, P, P, C]."""

    convs: int
    width: int  # of the convolutions and the deconvolution
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
        """Returns mask_logits [R, 2 P, 2 P, K] in float32; valid: see Convs."""
        settings = self.convs, self.width, self.norm_kind, self.norm, self.dtype
        x = Convs(*settings, name="convs")(regions, train, valid)
        upsample = Deconv(self.width, MSRA_UP, ZEROS, self.dtype, name="deconv")
        x = nn.relu(upsample(x))  # [R, 2 P, 2 P, width]
        predict = nn.Conv(
            self.classes,
            (1, 1),
            kernel_init=nn.initializers.normal(0.001),
            dtype=self.dtype,
            name="logits",
        )
        return {"mask_logits": predict(x).astype(jnp.float32)}
