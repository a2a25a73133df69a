"""Vision transformer (ViT; Dosovitskiy et al., 2021), in the variant used by MAE.

Pre-norm blocks, exact GELU, LayerNorm with epsilon 1e-6 (timm's and MAE's value, not
PyTorch's default of 1e-5), a fused query-key-value projection and Xavier-uniform
weights. Parameters are float32. Matrix products run in `dtype`; normalisation
statistics, the softmax and the residual stream stay in float32.
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
    """Raises UsageError, naming the nearest sizes, unless patches tile the image."""
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
    """Raises UsageError unless the heads divide the width, and so does 4.

    The 2D sine-cosine embedding has four equal parts: sine and cosine of each axis.
    """
    if width % heads or width % 4:
        raise UsageError(
            f"model.encoder.width={width} is not a multiple of 4 and of "
            f"model.encoder.heads={heads}."
        )


class Mlp(nn.Module):
    """Two-layer MLP with GELU: [..., D] -> [..., ratio * D] -> [..., D]."""

    ratio: float
    kernel_inits: tuple[Callable, Callable]  # of fc1 and fc2
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = int(x.shape[-1] * self.ratio)
        first, second = self.kernel_inits
        h = gelu(dense(hidden, self.dtype, "fc1", kernel_init=first)(x))
        return dense(x.shape[-1], self.dtype, "fc2", kernel_init=second)(h)


class Block(nn.Module):
    """Pre-norm block on [B, L, D]: x += Attention(Norm(x)); x += Mlp(Norm(x))."""

    heads: int
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, drop: Callable = lambda branch, y: y, **options
    ) -> tuple[Array, dict]:
        """Returns the tokens [B, L, D] and the notes of the attention.

        drop: stochastic depth, (branch, y) -> y. options: passed to attention.attend.
        """
        attention = SelfAttention(self.heads, self.dtype, name="attn")
        mixed, notes = attention(layer_norm(self.dtype, "norm1")(x), **options)
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
    """Applies `depth` blocks, built by `block(layer, name=..., parent=...)`, to x.

    run: (block, x, layer) -> (x, notes) applies one block; `layer` counts from 0 and
        is a traced array under `scan`.
    scan: stack the blocks' parameters and compile a single block body.
    remat: what the backward pass recomputes: "none", "block" (everything inside a
        block) or "dots" (everything except the results of matrix products).
    Parameters are always stored per block (blocks_0, blocks_1, ...), so checkpoints,
    weight-decay rules and per-tensor norms do not depend on scan or remat.
    Returns x and the notes, {name: [number of layers that note it, ...]}.
    """
    names = [f"blocks_{i}" for i in range(depth)]
    if parent.is_initializing():
        notes = []
        for i, name in enumerate(names):
            x, layer_notes = run(block(i, name=name), x, i)
            notes.append(layer_notes)
        return x, stack_notes(notes)

    def apply_layer(params, x, i):
        # Gather fully sharded parameters here, inside the checkpointed function, so
        # that only one block at a time is held unsharded.
        params = meshes.gathered(params)
        return block(i, parent=None).apply({"params": params}, x, i, method=run)

    params = [parent.variables["params"][name] for name in names]
    if not scan:
        notes = []
        for i, block_params in enumerate(params):
            layer = functools.partial(apply_layer, i=i)  # keeps `i` a Python int
            if remat != "none":
                layer = jax.checkpoint(layer, policy=REMAT[remat])
            x, layer_notes = layer(block_params, x)
            notes.append(layer_notes)
        return x, stack_notes(notes)
    if remat != "none":
        apply_layer = jax.checkpoint(apply_layer, policy=REMAT[remat])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)  # [depth, ...]
    layers = (stacked, jnp.arange(depth))
    return jax.lax.scan(lambda x, p: apply_layer(p[0], x, p[1]), x, layers)


def stack_notes(notes: list[dict]) -> dict:
    """Stacks the values of each name over the layers whose notes contain it."""
    names = sorted({name for layer in notes for name in layer})
    return {k: jnp.stack([layer[k] for layer in notes if k in layer]) for k in names}


class PatchEmbed(nn.Module):
    """Patch embedding, [B, H, W, C] -> [B, L, D]: one linear map of every patch.

    Equivalent to timm's convolution whose stride is its kernel size. Patches are
    flattened in the order (row, column, channel), and the kernel is initialised as a
    [patch * patch * C, D] matrix (MAE's code does so too: xavier on w.view(D, -1)).
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
    drop_path: float  # rate of the last block; rises linearly from 0 at the first
    position: str  # "sincos": fixed; "learned": a parameter initialised to it
    pool: str  # "class", "mean", or "mean_norm" (mean, then LayerNorm fc_norm)
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

    any_size = False  # the position table fits image_size alone

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    def position_table(self) -> Array:
        """Position embedding [1 + L, D] float32; the first row is the class token's."""
        table = positions.sincos_2d(self.grid, self.width, class_token=True)
        if self.position == "sincos":
            return jnp.asarray(table)
        return self.param("pos_embed", lambda _: jnp.asarray(table)[None])[0]

    def embed_patches(self, images: Array) -> Array:
        """[B, H, W, C] -> [B, L, D] float32, without positions."""
        # MAE re-initialises only the kernel, so the bias keeps PyTorch's default.
        inits = XAVIER, torch_default(self.patch**2 * self.channels)
        embed = PatchEmbed(
            self.patch, self.width, *inits, self.dtype, name="patch_embed"
        )
        return embed(images).astype(jnp.float32)

    def prepend_class_tokens(self, x: Array, position: Array, count: int) -> Array:
        """[B', n, D] -> [B', count + n, D], with copies of the class token in front.

        position: [1, D], the class token's row of the position table.
        """
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        cls = jnp.broadcast_to(cls + position, (x.shape[0], count, self.width))
        return jnp.concatenate([cls, x], axis=1)

    def block(self, layer: int | Array, **kwargs) -> Block:
        return Block(self.heads, self.mlp_ratio, self.dtype, **kwargs)

    def pool_tokens(self, x: Array, class_tokens: int) -> tuple[Array, Array]:
        """[B', c + n, D] -> the output tokens [B', c + n, D] and features [B', D]."""
        if self.pool == "mean_norm":  # MAE's global_pool: no norm before the mean
            mean = x[:, class_tokens:].mean(axis=1)
            return x, layer_norm(jnp.float32, "fc_norm")(mean)
        x = layer_norm(jnp.float32, "norm")(x)
        return x, x[:, 0] if self.pool == "class" else x[:, class_tokens:].mean(axis=1)

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

        select: [B, L, D] -> [B', n, D] picks, mixes or replaces patch tokens, after
            positions are added and before the class tokens are prepended.
        class_tokens: the number c of copies of the class token.
        choose: (layer, logits [B', heads, c + n, c + n]) -> (bool mask of that shape,
            True for keys that a query attends to, or None for all keys; notes).
        segments: [B', n] segment numbers, whose sine-cosine codes are added to the
            patch tokens at the input of every block.
        watch: a block whose output is also returned, as `watched`.
        Returns tokens [B', c + n, D] (after the final norm, unless pool is
        "mean_norm"), features [B', D], embedding [B, L, D] (of patches, without
        positions), positions [L, D], all float32, and notes.
        """
        check_watch(watch, self.depth, self.scan)
        table = self.position_table()  # [1 + L, D]
        embedding = self.embed_patches(inputs["images"])
        x = embedding + table[1:]  # [B, L, D]
        x = x if select is None else select(x)  # [B', n, D]
        x = self.prepend_class_tokens(x, table[:1], class_tokens)  # [B', c + n, D]
        codes = segment_codes(segments, self.width, class_tokens)
        key = self.make_rng("dropout") if train and self.drop_path > 0 else None
        drop = stochastic_depth.dropper(key, self.drop_path, self.depth)

        def run(block, x, layer):
            x = x if codes is None else x + codes
            choose_keys = None if choose is None else functools.partial(choose, layer)
            x, notes = block(x, functools.partial(drop, layer), choose=choose_keys)
            if watch is not None and layer == watch:
                notes = notes | {"watched": x}
            return x, notes

        options = {"remat": self.remat, "scan": self.scan, "run": run}
        x, notes = run_blocks(self, self.block, self.depth, x, **options)
        watched = {} if watch is None else {"watched": notes.pop("watched")[0]}
        tokens, features = self.pool_tokens(x, class_tokens)
        outputs = {"tokens": tokens, "features": features, "embedding": embedding}
        return outputs | {"positions": table[1:], "notes": notes} | watched


def segment_codes(segments: Array | None, width: int, class_tokens: int):
    """[B', n] -> [B', c + n, D], zero for the class tokens; None for None."""
    if segments is None:
        return None
    codes = positions.codes_1d(segments, width)  # [B', n, D]
    return jnp.pad(codes, ((0, 0), (class_tokens, 0), (0, 0)))


def check_watch(watch: int | None, depth: int, scan: bool) -> None:
    """Raises UsageError unless the output of block `watch` can be returned."""
    if watch is None:
        return
    if watch >= depth:
        raise UsageError(
            f"there is no layer {watch} to watch (method.contrast.position): the "
            f"last of model.encoder.depth={depth} is {depth - 1}."
        )
    if scan:  # a scanned body is traced once, with the layer's number unknown
        raise UsageError(
            "model.encoder.scan=True keeps no layer to watch; set it to False."
        )


make = ViT
