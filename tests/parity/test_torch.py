"""The same weights and the same noise in transformers' ViTMAE, and torch's resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.methods import mae
from mixjax.mixtures import tokens
from mixjax.models import positions

torch = pytest.importorskip("torch")


def to_transformers(params):
    """Our parameters under the names of ViTMAEForPreTraining."""
    state = {}

    def linear(name, layer):
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            layer["kernel"].T,
            layer["bias"],
        )

    def norm(name, layer):
        state[f"{name}.weight"], state[f"{name}.bias"] = layer["scale"], layer["bias"]

    def block(name, layers):
        qkv = layers["attn"]["qkv"]
        width = qkv["kernel"].shape[0]
        for i, which in enumerate("qkv"):
            part = slice(i * width, (i + 1) * width)
            cut = {"kernel": qkv["kernel"][:, part], "bias": qkv["bias"][part]}
            linear(f"{name}.attention.{which}_proj", cut)
        linear(f"{name}.attention.o_proj", layers["attn"]["proj"])
        linear(f"{name}.mlp.fc1", layers["mlp"]["fc1"])
        linear(f"{name}.mlp.fc2", layers["mlp"]["fc2"])
        norm(f"{name}.layernorm_before", layers["norm1"])
        norm(f"{name}.layernorm_after", layers["norm2"])

    encoder, decoder = params["encoder"], params["decoder"]
    patch = encoder["patch_embed"]["proj"]
    side = round((patch["kernel"].shape[0] / 3) ** 0.5)
    kernel = patch["kernel"].reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    name = "vit.embeddings.patch_embeddings.projection"
    state[f"{name}.weight"], state[f"{name}.bias"] = kernel, patch["bias"]
    state["vit.embeddings.cls_token"] = encoder["cls_token"]
    grid = (32 // side, 32 // side)
    state["vit.embeddings.position_embeddings"] = table(encoder, grid)
    state["decoder.decoder_pos_embed"] = table(decoder, grid)
    state["decoder.mask_token"] = decoder["mask_token"]
    norm("vit.layernorm", encoder["norm"])
    norm("decoder.decoder_norm", decoder["norm"])
    linear("decoder.decoder_embed", decoder["embed"])
    linear("decoder.decoder_pred", decoder["pred"])
    for part, prefix in ((encoder, "vit.layers"), (decoder, "decoder.decoder_layers")):
        for key in part:
            if key.startswith("blocks_"):
                block(f"{prefix}.{key.removeprefix('blocks_')}", part[key])
    return {k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()}


def table(part, grid):
    """The fixed positions of a part, which transformers keeps among its weights."""
    width = part["norm"]["scale"].shape[0]
    return positions.sincos_2d(grid, width, True)[None]  # [1, 1 + L, D]


@pytest.mark.parametrize("norm_pix", [True, False])
def test_vitmae_loss(norm_pix):
    transformers = pytest.importorskip("transformers")
    encoder = {"width": 48, "depth": 3, "heads": 4, "mlp_ratio": 4.0}
    decoder = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 4.0}
    how = {"remat": "none", "scan": False}
    network = models.make(
        {
            "precision": "float32",
            "encoder": encoder
            | how
            | {"name": "vit", "image_size": (32, 32), "channels": 3, "patch": 8}
            | {"position": "sincos", "pool": "class", "drop_path": 0.0},
            "decoder": decoder | how,
        }
    )
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    params, _ = network.init(jax.random.key(0), jnp.asarray(images))
    # Biases and norms start at 0 and 1, where forgetting one would not show.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree,
        [
            x + 0.05 * jax.random.normal(k, x.shape)
            for x, k in zip(leaves, keys, strict=True)
        ],
    )
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=32,
            patch_size=8,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=128,
            mask_ratio=0.75,
            norm_pix_loss=norm_pix,
            layer_norm_eps=1e-6,
        )
    ).eval()
    theirs.load_state_dict(to_transformers(params))
    noise = np.random.default_rng(1).uniform(size=(4, 16)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
        want = theirs(pixels, noise=torch.tensor(noise)).loss.item()
    masking = tokens.keep_smallest(jnp.asarray(noise), 4)

    def loss(params):
        outputs, _ = mae.reconstruct(
            network, params, {}, jnp.asarray(images), masking, 4, train=True
        )
        return mae.reconstruction_loss(
            outputs["prediction"], jnp.asarray(images), 8, masking, norm_pix
        )

    assert abs(float(jax.jit(loss)(params)) - want) < 1e-5


@pytest.mark.parametrize("side", range(14, 31))
def test_resize_positions_to_any_grid(side):
    """Explicit sizes, where a scale factor would round some to one patch too few."""
    old, new = (14, 14), (side, 44 - side)
    table = np.random.default_rng(side).normal(size=(197, 6)).astype(np.float32)
    grid = torch.tensor(table[1:].reshape(1, *old, 6)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(
        grid, size=new, mode="bicubic", align_corners=False
    )
    found = jax.jit(positions.resize, static_argnums=(1, 2))(table, old, new)
    np.testing.assert_array_equal(found[0], table[0])
    want = want.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    np.testing.assert_allclose(found[1:], want, atol=1e-5)
