"""The vision transformer of BEiT (Bao et al., 2022), in the variant used by SimMIM.

Unlike the plain ViT (vit.py) it has a relative position bias instead of absolute
positions, LayerScale on every residual branch (Touvron et al., 2021), no key bias,
stochastic depth and a mask token. LayerNorm with epsilon 1e-6, exact GELU. Parameters
are float32. Matrix products run in `dtype`; normalisation statistics, the softmax and
the residual stream stay in float32.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models import positions, stochastic_depth
from mixjax.models.attention import attend, by_head, joined
from mixjax.models.linear import dense
from mixjax.models.mask_token import cover
from mixjax.models.vit import (
    REMAT,
    Mlp,
    PatchEmbed,
    check_patches,
    layer_norm,
    run_blocks,
)

Array = jax.Array
ZEROS = nn.initializers.zeros
# SimMIM's pre-training truncates at +-0.02, which is one standard deviation.
NORMAL = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)


def damped(layer) -> Callable:
    """NORMAL / sqrt(2 (layer + 1)), for the last kernel of a residual branch.

    BEiT's fix_init_weight: it keeps the residual stream's variance from growing.
    """

    def init(key, shape, dtype=jnp.float32):
        return NORMAL(key, shape, dtype) * (2.0 * (layer + 1)) ** -0.5

    return init


def relative_bias(module: nn.Module, grid: tuple[int, int], heads: int) -> Array:
    """Bias [heads, 1 + L, 1 + L] from the parameter relative_bias of `module`."""
    # The three extra rows: class to patch, patch to class, class to class.
    shape = ((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads)
    table = module.param("relative_bias", ZEROS, shape)
    return positions.relative_bias(table, grid, class_token=True)


class Attention(nn.Module):
    """[B, 1 + L, D] -> [B, 1 + L, D], with a bias for queries and values, not keys.

    A key bias would add the same to all logits of a query, which softmax ignores.
    """

    grid: tuple[int, int] | None  # of this block's bias table; None: it has no table
    heads: int
    layer: int | Array
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, bias: Array | None, choose: Callable | None
    ) -> tuple[Array, dict]:
        """bias: shared [heads, 1 + L, 1 + L] or None. choose: see attention.attend."""
        d = x.shape[-1]
        qkv = dense(3 * d, self.dtype, "qkv", use_bias=False, kernel_init=NORMAL)(x)
        query, key, value = jnp.split(qkv, 3, axis=-1)  # each [B, 1 + L, D]
        query = query + self.param("q_bias", ZEROS, (d,)).astype(self.dtype)
        value = value + self.param("v_bias", ZEROS, (d,)).astype(self.dtype)
        if self.grid is not None:
            bias = relative_bias(self, self.grid, self.heads)
        parts = [by_head(y, self.heads) for y in (query, key, value)]
        mixed, notes = attend(*parts, bias=bias, choose=choose)
        proj = dense(d, self.dtype, "proj", kernel_init=damped(self.layer))
        return proj(joined(mixed)), notes


class Block(nn.Module):
    """x += gamma_1 Attention(Norm(x)); x += gamma_2 Mlp(Norm(x)); [B, 1 + L, D]."""

    grid: tuple[int, int] | None
    heads: int
    mlp_ratio: float
    layer_scale: float
    layer: int | Array  # its number, from 0
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, bias: Array | None, drop: Callable, choose: Callable | None
    ) -> tuple[Array, dict]:
        """bias: see Attention. drop: (branch, y) -> y, of stochastic depth.

        choose: see attention.attend.
        """
        scale = nn.initializers.constant(self.layer_scale)
        gamma = [self.param(f"gamma_{i}", scale, x.shape[-1:]) for i in (1, 2)]
        attention = Attention(
            self.grid, self.heads, self.layer, self.dtype, name="attn"
        )
        mixed, notes = attention(layer_norm(self.dtype, "norm1")(x), bias, choose)
        x = x + drop(0, gamma[0] * mixed)
        inits = NORMAL, damped(self.layer)
        mlp = Mlp(self.mlp_ratio, inits, self.dtype, name="mlp")
        y = mlp(layer_norm(self.dtype, "norm2")(x))
        return x + drop(1, gamma[1] * y), notes


class Beit(nn.Module):
    """Images [B, H, W, C] -> tokens [B, 1 + L, D], a map of them, features [B, D]."""

    image_size: tuple[int, int]
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    layer_scale: float  # initial value of gamma_1 and gamma_2
    drop_path: float  # rate of the last block; rises linearly from 0 at the first
    mask_token: bool
    pool: str  # "class", "mean", or "mean_norm" (mean, then LayerNorm fc_norm)
    relative: str  # "shared": one table for all blocks; "each": one per block
    remat: str
    scan: bool
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_patches(self.image_size, self.patch)
        if self.width % self.heads:
            raise UsageError(
                f"model.encoder.width={self.width} is not a multiple of "
                f"model.encoder.heads={self.heads}."
            )
        check_name("model.encoder.pool", self.pool, ["class", "mean", "mean_norm"])
        check_name("model.encoder.relative", self.relative, ["shared", "each"])
        check_name("model.encoder.remat", self.remat, ["none", *REMAT])

    any_size = False  # the bias tables fit image_size alone

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def embed(self, images: Array) -> Array:
        """[B, H, W, C] -> [B, L, D] float32."""
        embed = PatchEmbed(
            self.patch, self.width, NORMAL, ZEROS, self.dtype, name="patch_embed"
        )
        return embed(images).astype(jnp.float32)

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

        select: [B, L, D] -> [B', L, D] repeats or mixes patch tokens.
        hide: [B', L], 1 where the mask token then replaces a patch token.
        choose: (layer, logits) -> (bool mask of keys or None, notes); see
            attention.attend.
        Returns tokens [B', 1 + L, D] and map [B', h, w, D] (after the final norm,
        unless pool is "mean_norm"), features [B', D], embedding [B, L, D] (of
        patches, before select), all float32, and notes.
        """
        embedding = self.embed(inputs["images"])
        x = embedding if select is None else select(embedding)  # [B', L, D]
        shape = (1, 1, self.width)
        token = self.param("mask_token", NORMAL, shape) if self.mask_token else None
        x = cover(x, hide, token)
        cls = self.param("cls_token", NORMAL, shape)
        cls = jnp.broadcast_to(cls, (len(x), 1, self.width))
        x = jnp.concatenate([cls, x], axis=1)  # [B', 1 + L, D]
        shared = self.relative == "shared"
        bias = relative_bias(self, self.grid, self.heads) if shared else None
        table_grid = None if shared else self.grid
        key = self.make_rng("dropout") if train and self.drop_path > 0 else None
        drop = stochastic_depth.dropper(key, self.drop_path, self.depth)

        def block(layer, **kwargs):
            settings = self.heads, self.mlp_ratio, self.layer_scale, layer, self.dtype
            return Block(table_grid, *settings, **kwargs)

        def run(block, x, layer):
            choose_keys = None if choose is None else functools.partial(choose, layer)
            return block(x, bias, functools.partial(drop, layer), choose_keys)

        options = {"remat": self.remat, "scan": self.scan, "run": run}
        x, notes = run_blocks(self, block, self.depth, x, **options)
        if self.pool == "mean_norm":
            features = layer_norm(jnp.float32, "fc_norm")(x[:, 1:].mean(axis=1))
        else:
            x = layer_norm(jnp.float32, "norm")(x)
            features = x[:, 0] if self.pool == "class" else x[:, 1:].mean(axis=1)
        tokens_map = x[:, 1:].reshape(len(x), *self.grid, self.width)  # [B', h, w, D]
        outputs = {"tokens": x, "map": tokens_map, "features": features}
        return outputs | {"embedding": embedding, "notes": notes}


make = Beit
