"""Swin transformer (Liu et al., 2021) in the form that SimMIM uses.

Self-attention inside windows, which are shifted by half in every other block, and a
map that halves its sides and doubles its width from stage to stage. No absolute
positions; every block has a table of relative position biases. LayerNorm with epsilon
1e-5, exact GELU. Parameters are float32; `dtype` is that of the matrix products, while
norms' statistics, softmax and the residual stream stay in float32.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models import positions, stochastic_depth, windows
from mixjax.models.attention import attend
from mixjax.models.initializers import torch_default
from mixjax.models.linear import dense
from mixjax.models.mask_token import cover
from mixjax.models.vit import REMAT, Mlp, PatchEmbed, run_blocks

Array = jax.Array
# The official code truncates at +-2, a hundred standard deviations.
NORMAL = nn.initializers.normal(0.02)


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-5 and the two-pass variance."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


class WindowAttention(nn.Module):
    """[B, h, w, D] -> [B, h, w, D]: self-attention within square windows."""

    heads: int
    window: int
    shift: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, choose: Callable | None) -> tuple[Array, dict]:
        """choose: see attention.attend; of W windows as [B, W * heads, n, n]."""
        _, h, w, d = x.shape
        m = self.window
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        qkv = dense(3 * d, self.dtype, "qkv", kernel_init=NORMAL)(x)  # [B, h, w, 3 D]
        parts = [windows.fold(y, m, self.heads) for y in jnp.split(qkv, 3, axis=-1)]
        shape = ((2 * m - 1) ** 2, self.heads)
        table = self.param("relative_bias", NORMAL, shape)
        bias = positions.relative_bias(table, (m, m), class_token=False)
        if self.shift:
            bias = bias + windows.shift_bias((h, w), m, self.shift)  # [W, heads, n, n]
        bias = jnp.broadcast_to(bias, (h * w // m**2, *bias.shape[-3:]))
        bias = bias.reshape(-1, m * m, m * m)  # [W * heads, n, n]
        mixed, notes = attend(*parts, bias=bias, choose=choose)  # [B, W * heads, n, d]
        mixed = windows.unfold(mixed, (h, w), m)  # [B, h, w, D]
        x = dense(d, self.dtype, "proj", kernel_init=NORMAL)(mixed)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        return x, notes


class Block(nn.Module):
    """x += Attention(Norm(x)); x += Mlp(Norm(x)); [B, h, w, D]."""

    heads: int
    window: int
    shift: int
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, drop: Callable, choose: Callable | None
    ) -> tuple[Array, dict]:
        """drop: (branch, y) -> y, of stochastic depth. choose: see attention.attend."""
        settings = self.heads, self.window, self.shift, self.dtype
        attention = WindowAttention(*settings, name="attn")
        mixed, notes = attention(layer_norm(self.dtype, "norm1")(x), choose)
        x = x + drop(0, mixed.astype(jnp.float32))
        mlp = Mlp(self.mlp_ratio, (NORMAL, NORMAL), self.dtype, name="mlp")
        y = mlp(layer_norm(self.dtype, "norm2")(x))
        return x + drop(1, y.astype(jnp.float32)), notes


class PatchMerging(nn.Module):
    """[B, h, w, D] -> [B, h / 2, w / 2, 2 D]: four neighbours become one token.

    They are joined in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column).
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, d = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
        x = layer_norm(self.dtype, "norm")(x.reshape(b, h // 2, w // 2, 4 * d))
        options = {"use_bias": False, "kernel_init": NORMAL}
        return dense(2 * d, self.dtype, "reduction", **options)(x).astype(jnp.float32)


class Stage(nn.Module):
    """Blocks at one resolution, then the merging into the next, if any."""

    depth: int
    heads: int
    window: int
    shift: int  # of every other block
    mlp_ratio: float
    merge: bool
    remat: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, drop: Callable, choose: Callable | None
    ) -> tuple[Array, Array, dict]:
        """[B, h, w, D] -> the map before, and after the merging; notes.

        drop: (layer of this stage, branch, y) -> y. choose: (layer, logits), likewise.
        """

        def block(layer, **kwargs):
            shift = self.shift if layer % 2 else 0
            settings = self.heads, self.window, shift, self.mlp_ratio, self.dtype
            return Block(*settings, **kwargs)

        def run(block, x, layer):
            chosen = None if choose is None else functools.partial(choose, layer)
            return block(x, lambda branch, y: drop(layer, branch, y), chosen)

        # Blocks differ in their shift, so a scan with a common body is not possible.
        options = {"remat": self.remat, "scan": False, "run": run}
        x, notes = run_blocks(self, block, self.depth, x, **options)
        after = PatchMerging(self.dtype, name="merge")(x) if self.merge else x
        return x, after, notes


class Swin(nn.Module):
    """Images [B, H, W, C] -> a map [B, h, w, D'] and features [B, D']."""

    image_size: tuple[int, int]
    channels: int
    patch: int
    width: int  # of the first stage
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int  # side in tokens; smaller in a stage with a smaller map
    mlp_ratio: float
    drop_path: float  # of the last block; it rises linearly from 0 in the first
    mask_token: bool
    remat: str
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_name("model.encoder.remat", self.remat, ["none", *REMAT])
        if len(self.heads) != len(self.depths):
            raise UsageError(
                f"model.encoder.heads={tuple(self.heads)} and "
                f"model.encoder.depths={tuple(self.depths)} differ in length."
            )
        for i, heads in enumerate(self.heads):
            if self.width * 2**i % heads:
                raise UsageError(
                    f"model.encoder.heads={tuple(self.heads)}: {heads} does not divide "
                    f"{self.width * 2**i}, the width of stage {i}."
                )
        windows.check(self.image_size, self.patch, len(self.depths), self.window)

    any_size = False  # positions are those of image_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @nn.compact
    def __call__(
        self,
        inputs: dict,
        *,
        train: bool,
        select: Callable | None = None,
        hide: Array | None = None,
        choose: Callable | None = None,
    ) -> dict:
        """Encodes inputs["images"].

        select: [B, L, D] -> [B', L, D] repeats or mixes patch tokens after the patch
            embedding and its norm.
        hide: [B', L], 1 where the mask token then takes the place of a patch token.
        choose: (layer, logits) -> (keys or None, notes), in the blocks of the last
            stage alone; see attention.attend.
        Returns map [B', h, w, D'] (after the final norm), features [B', D'] (its
        mean), embedding [B, L, D] (before select), all float32; notes; and stages,
        the maps before each merging and before the final norm.
        """
        # The official code resets linear layers only, not this convolution.
        init = torch_default(self.patch**2 * self.channels)
        settings = self.patch, self.width, init, init, self.dtype
        embed = PatchEmbed(*settings, name="patch_embed")(inputs["images"])
        embedding = layer_norm(jnp.float32, "patch_norm")(embed)  # [B, L, D]
        x = embedding if select is None else select(embedding)  # [B', L, D]
        shape = (1, 1, self.width)
        token = self.param("mask_token", NORMAL, shape) if self.mask_token else None
        x = cover(x, hide, token).reshape(len(x), *self.grid, self.width)
        key = self.make_rng("dropout") if train and self.drop_path > 0 else None
        drop = stochastic_depth.dropper(key, self.drop_path, sum(self.depths))
        stages = []
        for i, depth in enumerate(self.depths):
            first, last = sum(self.depths[:i]), i == len(self.depths) - 1
            settings = depth, self.heads[i], *windows.in_map(x.shape[1:3], self.window)
            settings += self.mlp_ratio, not last, self.remat, self.dtype
            stage = Stage(*settings, name=f"stage_{i}")
            drop_in_stage = lambda layer, *branch, first=first: drop(
                first + layer, *branch
            )
            # [B', h, w, D], then half and twice that
            before, x, notes = stage(x, drop_in_stage, choose if last else None)
            stages.append(before)
        x = layer_norm(jnp.float32, "norm")(x)
        outputs = {"map": x, "features": x.mean(axis=(1, 2)), "embedding": embedding}
        return outputs | {"stages": tuple(stages), "notes": notes}


make = Swin
