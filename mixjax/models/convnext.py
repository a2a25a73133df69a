"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", CVPR 2022), in timm's layout.

    stem       convolution of side and stride `stem`, LayerNorm             section 2.3
    block      x + drop(gamma * fc2(GELU(fc1(LayerNorm(depthwise(x))))))     figure 4
    merge      LayerNorm, convolution of side and stride 2, between stages  section 2.6
    features   LayerNorm of the mean over the last map

ConvNeXt-T has depths (3, 3, 9, 3) and widths (96, 192, 384, 768). LayerNorm has epsilon
1e-6, GELU is exact, depthwise kernels have side 7, kernels start from N(0, 0.02), and
layer scale (gamma) from 1e-6. Parameters are float32; `dtype` is that of convolutions
and matrix products, while norms' statistics and the residual stream stay in float32.
Departures: none known.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models import stochastic_depth
from mixjax.models.linear import dense

Array = jax.Array
NORMAL = nn.initializers.normal(0.02)  # timm truncates at +-2, a hundred deviations


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """LayerNorm over channels with epsilon 1e-6 and the two-pass variance."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


def patch_conv(width: int, side: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A convolution of patches that do not overlap: side and stride are equal."""
    return nn.Conv(
        width,
        (side, side),
        (side, side),
        padding="VALID",
        dtype=dtype,
        kernel_init=NORMAL,
        name=name,
    )


class Block(nn.Module):
    """x + scale * branch(x); [B, h, w, D] -> [B, h, w, D]."""

    mlp_ratio: float
    layer_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, scale: Array) -> Array:
        """scale: [B, 1, 1, 1], 0 for examples that skip the branch."""
        width = x.shape[-1]
        y = nn.Conv(
            width,
            (7, 7),
            padding=3,
            feature_group_count=width,  # depthwise
            dtype=self.dtype,
            kernel_init=NORMAL,
            name="conv_dw",
        )(x)
        y = layer_norm(self.dtype, "norm")(y)
        hidden = int(width * self.mlp_ratio)
        y = dense(hidden, self.dtype, "fc1", kernel_init=NORMAL)(y)
        y = jax.nn.gelu(y, approximate=False)  # [B, h, w, mlp_ratio D]
        y = dense(width, self.dtype, "fc2", kernel_init=NORMAL)(y)
        initial = nn.initializers.constant(self.layer_scale)
        gamma = self.param("gamma", initial, (width,))
        return x + scale * (gamma * y.astype(jnp.float32))


class Merge(nn.Module):
    """[B, h, w, D] -> [B, h // 2, w // 2, D']: the transition to the next stage."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = layer_norm(self.dtype, "norm")(x)
        return patch_conv(self.width, 2, self.dtype, "conv")(x).astype(jnp.float32)


class Stage(nn.Module):
    """Blocks at one resolution, then the transition to the next stage, if any."""

    depth: int
    next_width: int  # 0: this is the last stage
    mlp_ratio: float
    layer_scale: float
    remat: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, scales: Array) -> tuple[Array, Array]:
        """x [B, h, w, D], scales [depth, B, 1, 1, 1] -> the map before and after."""
        block = Block if self.remat == "none" else nn.remat(Block)
        for layer in range(self.depth):
            settings = self.mlp_ratio, self.layer_scale, self.dtype
            x = block(*settings, name=f"blocks_{layer}")(x, scales[layer])
        if not self.next_width:
            return x, x
        return x, Merge(self.next_width, self.dtype, name="merge")(x)


class ConvNeXt(nn.Module):
    """Images [B, H, W, C] -> a map [B, h, w, D] and features [B, D]."""

    image_size: tuple[int, int]
    channels: int
    stem: int  # side and stride of the first convolution; 4 in the paper
    depths: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # channels of each stage
    mlp_ratio: float
    layer_scale: float  # initial value of gamma
    drop_path: float  # of the last block; it rises linearly from 0 in the first
    remat: str  # "block": the backward pass recomputes the inside of each block
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.encoder.remat", self.remat, ["none", "block"])
        if len(self.depths) != len(self.widths):
            raise UsageError(
                f"model.encoder.depths={tuple(self.depths)} and "
                f"model.encoder.widths={tuple(self.widths)} differ in length."
            )
        if min(self.grid) < 1:
            raise UsageError(
                f"model.encoder.image_size={tuple(self.image_size)} is smaller than "
                f"{self.patch} pixels, the stride of the last stage."
            )

    any_size = True

    @property
    def patch(self) -> int:
        """Pixels from one place of the last map to the next."""
        return self.stem * 2 ** (len(self.depths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last map."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @nn.compact
    def __call__(self, inputs: dict, *, train: bool) -> dict:
        """Encodes inputs["images"], of any size.

        Returns map [B, h, w, D], features [B, D] (after the final norm) and stages, the
        maps before each transition, all float32.
        """
        images = inputs["images"]
        x = patch_conv(self.widths[0], self.stem, self.dtype, "patch_conv")(images)
        x = layer_norm(jnp.float32, "patch_norm")(x)  # [B, h, w, D]
        key = self.make_rng("dropout") if train and self.drop_path > 0 else None
        scales = self.branch_scales(key, len(images))
        stages = []
        for i, depth in enumerate(self.depths):
            first = sum(self.depths[:i])
            following = self.widths[i + 1] if i + 1 < len(self.widths) else 0
            settings = self.mlp_ratio, self.layer_scale, self.remat, self.dtype
            stage = Stage(depth, following, *settings, name=f"stage_{i}")
            before, x = stage(x, scales[first : first + depth])
            stages.append(before)
        features = layer_norm(jnp.float32, "norm")(x.mean(axis=(1, 2)))  # [B, D]
        return {"map": x, "features": features, "stages": tuple(stages)}

    def branch_scales(self, key: Array | None, batch: int) -> Array:
        """[layers, B, 1, 1, 1]: what stochastic depth multiplies each branch by."""
        layers = sum(self.depths)
        drop = stochastic_depth.dropper(key, self.drop_path, layers)
        ones = jnp.ones((batch, 1, 1, 1), jnp.float32)
        return jnp.stack([drop(layer, 0, ones) for layer in range(layers)])


make = ConvNeXt
