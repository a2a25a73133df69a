"""The same weights and the same noise in transformers' ViTMAE, and torch's resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.export import vit
from mixjax.export.name_rules import to_theirs
from mixjax.methods import mae
from mixjax.mixtures import tokens
from mixjax.models import positions
from mixjax.run.checkpoints import by_path

torch = pytest.importorskip("torch")


def to_transformers(params, grid):
    """Our parameters under the names of ViTMAEForPreTraining in memory."""
    arrays = {k: np.asarray(v) for k, v in by_path(params).items()}
    for part in ("encoder", "decoder"):  # whose fixed positions are weights there
        width = params[part]["norm"]["scale"].shape[0]
        table = positions.sincos_2d(grid, width, True)[None]  # [1, 1 + L, D]
        arrays[f"{part}/pos_embed"] = table
    encoder = {"patch": 8, "channels": 3}
    named = to_theirs(arrays, vit.HF_WHOLE_MEMORY, encoder)
    return {k: torch.tensor(v) for k, v in named.items()}


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
    theirs.load_state_dict(to_transformers(params, (4, 4)))
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
