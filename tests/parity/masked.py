"""Sections of config.model as reference files of masked autoencoders have them."""

import jax
import jax.numpy as jnp
import numpy as np


def encoder(ref, **changes):
    """The ViT of MAE."""
    side = ref["hp/img_size"]
    return {
        "name": "vit",
        "drop_path": 0.0,
        "image_size": (side, side),
        "channels": ref["in/imgs"].shape[1],
        "patch": ref["hp/patch_size"],
        "width": ref["hp/embed_dim"],
        "depth": ref["hp/depth"],
        "heads": ref["hp/num_heads"],
        "mlp_ratio": ref["hp/mlp_ratio"],
        "position": "sincos",
        "pool": "class",
        "remat": "none",
        "scan": False,
        **changes,
    }


def decoder(ref):
    """The decoder of MAE."""
    return {
        "width": ref["hp/decoder_embed_dim"],
        "depth": ref["hp/decoder_depth"],
        "heads": ref["hp/decoder_num_heads"],
        "mlp_ratio": ref["hp/mlp_ratio"],
        "remat": "none",
        "scan": False,
    }


def variational(ref):
    """The variational network of MI-MAE."""
    return {
        "hidden": ref["hp/vnet_hidden"],
        "mean_act": ref.arrays.get("hp/mu_act", np.array("leaky_relu")).item(),
        "variance_act": ref.arrays.get("hp/var_act", np.array("relu_floor")).item(),
        "floor": ref["hp/var_floor"],
    }


# Parameter groups as the reference files have them -> our parts.
GROUPS = ("encoder", "decoder", "variational")


def group_norm(grads, group):
    """The L2 norm of a part's gradient."""
    part = grads["pixel_head" if group not in grads else group]
    leaves = jax.tree.leaves(part)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))
