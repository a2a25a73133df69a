"""Vision transformer (Dosovitskiy et al., 2021) in the form that MAE uses.

Pre-norm blocks, exact GELU, LayerNorm with epsilon 1e-6, fused query-key-value,
xavier-uniform projections. Parameters are float32; `dtype` is that of the matrix
products, while norms' statistics, softmax and the residual stream stay in float32.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixjax.errors import UsageError, check_name
from mixjax.models import positions, stochastic_depth
from mixjax.models.attention import SelfAttention
from mixjax.models.initializers import torch_default
from mixjax.models.linear import dense
from mixjax.sharding import meshes

Array = jax.Array
REMAT = {"block": None, "dots": jax.checkpoint_policies.dots_saveable}
XAVIER = nn.initializers.xavier_uniform()


def gelu(x: Array) -> Array:
    """x * Phi(x) with the error function, as torch computes it (float32 inside)."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-6 and the two-pass variance."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


def check_patches(image_size: tuple[int, int], patch: int) -> None:
    """UsageError, with the nearest sides, unless patches tile the image."""
    for side in image_size:
        if side % patch:
            low = side // patch * patch
            fits = " or ".join(str(s) for s in (low, low + patch) if s)
            raise UsageError(
                f"model.encoder.image_size={tuple(image_size)}: {side} is not a "
                f"multiple of model.encoder.patch={patch}; the nearest multiples are "
                f"{fits}."
            )


def check_width(width: int, heads: int) -> None:
    """UsageError unless heads and sine-cosine codes share the width evenly."""
    if width % heads or width % 4:
        raise UsageError(
            f"model.encoder.width={width} is not a multiple of 4 and of "
            f"model.encoder.heads={heads}."
        )


class Mlp(nn.Module):
    """[..., D] -> [..., D] through a hidden layer of `ratio` times D."""

    ratio: float
    kernel_inits: tuple[Callable, Callable]  # of the two layers
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = int(x.shape[-1] * self.ratio)
        first, second = self.kernel_inits
        h = gelu(dense(hidden, self.dtype, "fc1", kernel_init=first)(x))
        return dense(x.shape[-1], self.dtype, "fc2", kernel_init=second)(h)


class Block(nn.Module):
    """x += Attention(Norm(x)); x += Mlp(Norm(x)); [B, L, D]."""

    heads: int
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, drop: Callable = lambda branch, y: y, **how
    ) -> tuple[Array, dict]:
        """Returns the tokens and what was noted.

        drop: (branch, y) -> y, of stochastic depth; how: see attention.attend.
        """
        attention = SelfAttention(self.heads, self.dtype, name="attn")
        mixed, notes = attention(layer_norm(self.dtype, "norm1")(x), **how)
        x = x + drop(0, mixed)
        mlp = Mlp(self.mlp_ratio, (XAVIER, XAVIER), self.dtype, name="mlp")
        return x + drop(1, mlp(layer_norm(self.dtype, "norm2")(x))), notes


def run_blocks(
    parent: nn.Module,
    block: Callable,
    depth: int,
    x: Array,
    *,
    remat: str,
    scan: bool,
    run: Callable = lambda block, x, layer: block(x),
) -> tuple[Array, dict]:
    """Runs `depth` blocks, made by `block(layer, name=..., parent=...)`, over x.

    run: (block, x, layer) -> (x, notes) is one layer; `layer` counts from 0 and is an
        array under `scan`.
    Parameters always live one block at a time (blocks_0, blocks_1, ...), so that
    checkpoints, decay rules and per-tensor norms do not depend on how the blocks
    run. `scan` stacks them for one compiled body; `remat` says what the backward
    pass computes again: "none", "block" (everything inside a block) or "dots"
    (everything but the results of matrix products).
    Returns x and the layers' notes, {name: [layers that noted it, ...]}.
    """
    names = [f"blocks_{i}" for i in range(depth)]
    if parent.is_initializing():
        notes = []
        for i, name in enumerate(names):
            x, found = run(block(i, name=name), x, i)
            notes.append(found)
        return x, stack_notes(notes)

    def layer(params, x, i):
        params = meshes.gathered(params)
        return block(i, parent=None).apply({"params": params}, x, i, method=run)

    params = [parent.variables["params"][name] for name in names]
    if not scan:
        notes = []
        for i, p in enumerate(params):
            one = functools.partial(layer, i=i)
            if remat != "none":
                one = jax.checkpoint(one, policy=REMAT[remat])
            x, found = one(p, x)
            notes.append(found)
        return x, stack_notes(notes)
    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT[remat])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    each = (stacked, jnp.arange(depth))
    return jax.lax.scan(lambda x, p: layer(p[0], x, p[1]), x, each)


def stack_notes(notes: list[dict]) -> dict:
    """{name: the values of all dicts that have it, stacked}."""
    names = sorted({name for found in notes for name in found})
    return {k: jnp.stack([found[k] for found in notes if k in found]) for k in names}


class PatchEmbed(nn.Module):
    """[B, H, W, C] -> [B, L, D]: cut into patches, one linear map.

    A patch is flattened (row, column, channel); what a kernel starts from is that of
    the [patch * patch * C, D] matrix.
    """

    patch: int
    width: int
    kernel_init: Callable
    bias_init: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        b, h, w, c = images.shape
        p = self.patch
        x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, (h // p) * (w // p), p * p * c)  # [B, L, P]
        inits = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        return dense(self.width, self.dtype, "proj", **inits)(x)


class ViT(nn.Module):
    """Images [B, H, W, C] -> tokens [B, 1 + n, D] and features [B, D]."""

    image_size: tuple[int, int]
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    drop_path: float  # of the last block; it rises from 0 in the first
    position: str  # "sincos": fixed table; "learned": a parameter that starts from it
    pool: str  # "class", "mean", or "mean_norm" (mean first, then a norm of its own)
    remat: str
    scan: bool
    dtype: jnp.dtype

    def __post_init__(self):
        super().__post_init__()
        check_patches(self.image_size, self.patch)
        check_width(self.width, self.heads)
        check_name("model.encoder.position", self.position, ["sincos", "learned"])
        check_name("model.encoder.pool", self.pool, ["class", "mean", "mean_norm"])
        check_name("model.encoder.remat", self.remat, ["none", *REMAT])

    any_size = False  # positions are those of image_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def position_table(self) -> Array:
        """[1 + L, D] float32, the class token's row first."""
        table = positions.sincos_2d(self.grid, self.width, class_token=True)
        if self.position == "sincos":
            return jnp.asarray(table)
        return self.param("pos_embed", lambda _: jnp.asarray(table)[None])[0]

    @nn.compact
    def __call__(
        self,
        inputs: dict,
        *,
        train: bool,
        select: Callable | None = None,
        class_tokens: int = 1,
        choose: Callable | None = None,
        segments: Array | None = None,
        watch: int | None = None,
    ) -> dict:
        """Encodes inputs["images"].

        select: [B, L, D] -> [B', n, D] takes, mixes or replaces patch tokens after
            their positions were added and before the class tokens are put in front.
        class_tokens: so many copies of it, c.
        choose: (layer, logits [B', heads, c + n, c + n]) -> (bool of that shape, the
            keys that a query sees, or None for all; notes).
        segments: [B', n] whose sine-cosine codes are added to the patch tokens at the
            input of every layer.
        watch: a layer whose output is returned too, as `watched`.
        Returns tokens [B', c + n, D] (after the final norm, unless pool says
        "mean_norm"), features [B', D], embedding [B, L, D] (of patches, without
        positions), positions [L, D], all float32, and notes.
        """
        if watch is not None and watch >= self.depth:
            raise UsageError(
                f"there is no layer {watch} to watch (method.contrast.position): the "
                f"last of model.encoder.depth={self.depth} is {self.depth - 1}."
            )
        images, c = inputs["images"], class_tokens
        table = self.position_table()
        # Nothing in MAE's code resets the bias of torch's convolution.
        inits = XAVIER, torch_default(self.patch**2 * self.channels)
        embed = PatchEmbed(
            self.patch, self.width, *inits, self.dtype, name="patch_embed"
        )
        embedding = embed(images).astype(jnp.float32)
        x = embedding + table[1:]  # [B, L, D]
        if select is not None:
            x = select(x)  # [B', n, D]
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        cls = jnp.broadcast_to(cls + table[:1], (x.shape[0], c, self.width))
        x = jnp.concatenate([cls, x], axis=1)  # [B', c + n, D]
        if segments is not None:
            codes = positions.codes_1d(segments, self.width)  # [B', n, D]
            codes = jnp.pad(codes, ((0, 0), (c, 0), (0, 0)))  # none for class tokens

        def block(layer, **kwargs):
            return Block(self.heads, self.mlp_ratio, self.dtype, **kwargs)

        key = self.make_rng("dropout") if train and self.drop_path > 0 else None
        drop = stochastic_depth.dropper(key, self.drop_path, self.depth)

        def run(block, x, layer):
            if segments is not None:
                x = x + codes
            chosen = None if choose is None else functools.partial(choose, layer)
            x, notes = block(x, functools.partial(drop, layer), choose=chosen)
            if watch is not None and _same_layer(layer, watch):
                notes = notes | {"watched": x}
            return x, notes

        how = {"remat": self.remat, "scan": self.scan, "run": run}
        x, notes = run_blocks(self, block, self.depth, x, **how)
        watched = {} if watch is None else {"watched": notes.pop("watched")[0]}
        if self.pool == "mean_norm":
            features = layer_norm(jnp.float32, "fc_norm")(x[:, c:].mean(axis=1))
        else:
            x = layer_norm(jnp.float32, "norm")(x)
            features = x[:, 0] if self.pool == "class" else x[:, c:].mean(axis=1)
        found = {"tokens": x, "features": features, "embedding": embedding}
        found["positions"] = table[1:]
        return found | watched | {"notes": notes}


def _same_layer(layer, watch: int) -> bool:
    if not isinstance(layer, int):
        raise UsageError("model.encoder.scan=True keeps no layer to watch; set False.")
    return layer == watch


make = ViT
