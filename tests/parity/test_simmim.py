"""SimMIM against the official code (microsoft/SimMIM), and MI-SimMIM."""

import chex
import jax
import jax.numpy as jnp
import pytest

from mixjax import models
from mixjax.methods import misimmim, simmim
from mixjax.objectives import mutual_information as mi
from tests.parity import backbones
from tests.parity.masked import GROUPS, group_norm, variational
from tests.parity.torch_names import at, backbone_path, images, path_of, to_tree


@pytest.mark.parametrize("name", ["simmim_swin", "simmim_vit"])
def test_simmim(reference, name):
    ref = reference(name)
    section = backbones.swin if name == "simmim_swin" else backbones.beit
    parts = {"encoder": section(ref, "in/x"), "pixel_head": {}}
    network = models.make({"precision": "float32", **parts})
    params = jax.tree.map(jnp.asarray, to_tree(ref.part("params"), backbone_path))
    batch, hidden = jnp.asarray(images(ref["in/x"])), ref["in/mask"]
    assert hidden.shape[1:] == network.geometry.grid
    kept = 1 - jnp.asarray(hidden.reshape(len(hidden), 1, -1), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), batch)
    chex.assert_trees_all_equal_shapes(shapes[0], params)

    def run(params):
        inputs = simmim.part_inputs(kept)
        outputs, _ = network.apply(params, {}, batch, train=True, **inputs)
        patch = ref["hp/patch_size"]
        loss = simmim.reconstruction_loss(outputs["prediction"], batch, kept, patch)
        return loss, outputs

    (loss, outputs), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    ref.check("loss", loss)
    ref.check("z", outputs["map"].transpose(0, 3, 1, 2))
    ref.check("x_rec", outputs["prediction"].transpose(0, 3, 1, 2))
    for tensor, grad in ref.part("out/grad").items():
        expected = at(to_tree({tensor: grad}, backbone_path), tensor, backbone_path)
        ref.check(f"grad/{tensor}", at(grads, tensor, backbone_path), expected)
    # The pixels that a place of the map stands for: a setting there, derived here.
    stride = ref["hp/img_size"] // outputs["map"].shape[1]
    assert stride == ref["hp/encoder_stride"]


def test_misimmim(reference):
    ref = reference("misimmim")
    parts = {"encoder": backbones.beit(ref, "in/imgs"), "pixel_head": {}}
    parts["variational"] = variational(ref)
    network = models.make({"precision": "float32", **parts})
    path = lambda name: (path_of if name[:4] == "vnet" else backbone_path)(name)
    params = jax.tree.map(jnp.asarray, to_tree(ref.part("params"), path))
    batch, hidden = jnp.asarray(images(ref["in/imgs"])), ref["in/mask"]
    kept = 1 - jnp.asarray(hidden.reshape(*hidden.shape[:2], -1), jnp.float32)
    lam = [ref[f"hp/lam{i}"] for i in (1, 2, 3)]
    settings = (ref["hp/tau"], 1, ref["hp/min_mi_negatives"], "sum")
    information = mi.Information(*lam, 1.0, *settings)

    def run(params):
        inputs = misimmim.part_inputs(kept)
        outputs, _ = network.apply(params, {}, batch, train=True, **inputs)
        patch, z = ref["hp/patch_size"], misimmim.pool_latents(outputs)
        recon = simmim.reconstruction_loss(outputs["prediction"], batch, kept, patch)
        terms = information.terms(z, outputs["mean"], outputs["variance"])
        totals = {
            f"total_{word}": lam[0] * recon + information.total(terms, gate)
            for word, gate in (("open", 1.0), ("closed", 0.0))
        }
        return {"loss_rec": recon, **terms, **totals}, (outputs, z)

    losses, (outputs, z) = jax.jit(run)(params)
    grads = jax.jit(jax.jacrev(lambda p: run(p)[0]))(params)
    views = z.shape[:2]
    latent = outputs["map"].reshape(*views, -1, z.shape[-1])
    prediction = outputs["prediction"].transpose(0, 3, 1, 2)
    ours = losses | {
        "latent": latent,
        "x_rec": prediction.reshape(*views, *prediction.shape[1:]),
        "z": z,
        "x": misimmim.view_inputs(outputs, kept),
        "mu": outputs["mean"],
        "var": outputs["variance"],
    }
    for term, grad in grads.items():
        for group in GROUPS:
            ours[f"grad_norm/{term}/{group}"] = group_norm(grad, group)
    checked = 0
    for key, expected in ref.part("out").items():
        if key.startswith("grad/"):
            tensor = key.removeprefix("grad/")
            expected = at(to_tree({tensor: expected}, path), tensor, path)
            ref.check(key, at(grads["total_open"], tensor, path), expected)
        elif not key.endswith("_f64"):
            ref.check(key, ours[key])
            checked += 1
    assert checked >= len(ours) - 1
