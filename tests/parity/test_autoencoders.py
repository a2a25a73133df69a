"""MAE and its ViT against the official code (facebookresearch/mae)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import models
from mixjax.methods import mae
from mixjax.mixtures import tokens
from mixjax.models import positions
from mixjax.objectives import pixels
from tests.parity.masked import decoder, encoder
from tests.parity.torch_names import at, images, to_tree


def test_mae_pretrain(reference):
    ref = reference("mae_pretrain")
    parts = {"encoder": encoder(ref), "decoder": decoder(ref)}
    network = models.make({"precision": "float32", **parts})
    named = ref.part("params")
    table = named.pop("pos_embed")[0], named.pop("decoder_pos_embed")[0]
    grid = network.geometry.grid
    for fixed, width in zip(
        table, (ref["hp/embed_dim"], ref["hp/decoder_embed_dim"]), strict=True
    ):
        np.testing.assert_allclose(
            positions.sincos_2d(grid, width, class_token=True), fixed, atol=1e-6
        )
    params = jax.tree.map(jnp.asarray, to_tree(named))
    batch, patch = images(ref["in/imgs"]), ref["hp/patch_size"]
    visible = int(grid[0] * grid[1] * (1 - ref["hp/mask_ratio"]))
    masking = jax.jit(tokens.keep_smallest, static_argnums=1)(
        jnp.asarray(ref["in/noise"]), visible
    )
    ref.check("ids_restore", masking.restore.astype(jnp.int32))
    ref.check("mask", 1 - masking.kept)

    def run(params, norm_pix):
        outputs, _ = mae.reconstruct(
            network, params, {}, batch, masking, visible, train=True
        )
        loss = mae.reconstruction_loss(
            outputs["prediction"], batch, patch, masking, norm_pix
        )
        return loss, outputs

    evaluate = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    (plain, _), _ = evaluate(params, False)
    ref.check("loss", plain)
    (loss, outputs), grads = evaluate(params, True)
    ref.check("loss_norm_pix", loss)
    ref.check("patchified", jax.jit(pixels.patchify, static_argnums=1)(batch, patch))
    ref.check("latent", outputs["tokens"])
    ref.check("pred", outputs["prediction"])
    expected = ref.part("out/grad")
    assert set(expected) == set(named)
    for name, grad in expected.items():
        ref.check(f"grad/{name}", at(grads, name), at(to_tree({name: grad}), name))


@pytest.mark.parametrize("kind", ["gap", "cls"])
def test_vit_finetune(reference, kind):
    ref = reference("vit_finetune")
    config = {
        "precision": "float32",
        "encoder": encoder(
            ref, position="learned", pool="mean_norm" if kind == "gap" else "class"
        ),
        "classifier": {
            "classes": ref["hp/num_classes"],
            "init_std": 2e-5,
            "feature_norm": False,
        },
    }
    network = models.make(config)
    unused = "norm." if kind == "gap" else "fc_norm."
    named = {k: v for k, v in ref.part("params").items() if not k.startswith(unused)}
    params = jax.tree.map(jnp.asarray, to_tree(named))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images(ref["in/imgs"]))
    chex.assert_trees_all_equal_shapes(shapes[0], params)
    batch, labels = images(ref["in/imgs"]), jnp.asarray(ref["in/labels"])

    def run(params):
        outputs, _ = network.apply(params, {}, batch, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs["logits"], labels
        )
        return losses.mean(), outputs

    (loss, outputs), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    ref.check(f"features_{kind}", outputs["features"])
    ref.check(f"logits_{kind}", outputs["logits"])
    ref.check(f"loss_{kind}", loss)
    if kind == "gap":
        expected = ref.part("out/grad_gap")
        for name, grad in expected.items():
            key = f"grad_gap/{name}"
            ref.check(key, at(grads, name), at(to_tree({name: grad}), name))
        assert set(expected) == set(named)


def test_sincos_pos_embed(reference):
    ref = reference("sincos_pos_embed")
    small = (ref["hp/small_grid"],) * 2, ref["hp/small_dim"]
    large = (ref["hp/large_grid"],) * 2, ref["hp/large_dim"]
    ref.check("small", positions.sincos_2d(*small, class_token=False))
    ref.check("small_cls", positions.sincos_2d(*small, class_token=True))
    table = positions.sincos_2d(*large, class_token=False)
    ref.check("large_first3", table[:3])
    ref.check("large_last", table[-1])
    ref.check("large_row_sum", table.sum(axis=1))
    ref.check("large_sum", table.sum(dtype=np.float64))
    with_class = positions.sincos_2d(*large, class_token=True)
    ref.check("large_cls_first3", with_class[:3])
    assert with_class.shape == tuple(ref["out/large_cls_shape"])


def test_pos_embed_interpolate(reference):
    ref = reference("pos_embed_interpolate")
    old, new = (ref["hp/old_grid"],) * 2, (ref["hp/new_grid"],) * 2
    resize = jax.jit(positions.resize, static_argnums=(1, 2))
    ref.check("pos_embed", resize(jnp.asarray(ref["in/pos_embed"][0]), old, new)[None])
