"""MI-MAE and its terms against the reference numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.methods import mimae
from mixjax.mixtures import tokens
from mixjax.mixtures.tokens import Masking
from mixjax.objectives import mutual_information as mi
from mixjax.objectives import pixels
from tests.parity.conftest import FOLDER, Reference
from tests.parity.masked import GROUPS, decoder, encoder, group_norm, variational
from tests.parity.torch_names import at, images, to_tree

POOLS = {"mean_all": "mean_all", "cls": "class", "mean_patch": "mean_patch"}
TERMS = ("loss_rec", "loss_max", "loss_min", "loss_approx")


@pytest.fixture(scope="module")
def setting():
    ref = Reference("mimae")
    parts = {
        "encoder": encoder(ref),
        "decoder": decoder(ref),
        "variational": variational(ref),
    }
    network = models.make({"precision": "float32", **parts})
    named = ref.part("params")
    for table in ("pos_embed", "decoder_pos_embed"):
        del named[table]
    return ref, network, jax.tree.map(jnp.asarray, to_tree(named))


def masking_of(ids, length):
    """The Masking whose views keep exactly `ids` [B, N, V], in that order."""
    hidden = [[sorted(set(range(length)) - set(v)) for v in b] for b in ids.tolist()]
    shuffle = jnp.concatenate([jnp.asarray(ids), jnp.asarray(hidden)], axis=-1)
    restore = jnp.argsort(shuffle, axis=-1)
    kept = (restore < ids.shape[-1]).astype(jnp.float32)
    return Masking(shuffle, restore, kept)


@pytest.mark.parametrize("name", ["main", "cls", "mean_patch", "batch", "identical"])
def test_mimae(setting, name):
    ref, network, params = setting
    hp = ref.part(f"hp/{name}")
    batch, patch = jnp.asarray(images(ref["in/imgs"])), ref["hp/patch_size"]
    masking = masking_of(ref[f"in/{hp['ids'].item()}"], np.prod(network.geometry.grid))
    views, visible = masking.kept.shape[1], int(masking.kept[0, 0].sum())
    pool = POOLS[hp["latent_pool"].item()]
    inputs = mimae.part_inputs(masking, visible, pool, "embedding", patch)
    lam = [ref[f"hp/lam{i}"] for i in (1, 2, 3)]
    settings = (ref["hp/tau"], 1, hp["min_mi_negatives"].item(), ref["hp/reduce"])
    information = mi.Information(*lam, 1.0, *settings)
    target = pixels.normalise(pixels.patchify(batch, patch))

    def run(params):
        outputs, _ = network.apply(params, {}, batch, train=True, **inputs)
        z = mimae.pool_latents(outputs, pool, views)
        kept = masking.kept
        recon = mimae.view_reconstruction_loss(outputs["prediction"], target, kept)
        terms = information.terms(z, outputs["mean"], outputs["variance"])
        totals = {
            f"total_{word}": lam[0] * recon + information.total(terms, gate)
            for word, gate in (("open", 1.0), ("closed", 0.0))
        }
        return {"loss_rec": recon, **terms, **totals}, (outputs, z)

    losses, (outputs, z) = jax.jit(run)(params)
    shape = (*z.shape[:2], *outputs["tokens"].shape[1:])
    x = mimae.view_inputs(outputs, masking, "embedding", patch)
    ours = losses | {"z": z, "x": x, "mu": outputs["mean"], "var": outputs["variance"]}
    ours |= {"latent": outputs["tokens"].reshape(shape), "mask": 1 - masking.kept}
    prediction = outputs["prediction"]
    ours["pred"] = prediction.reshape(*z.shape[:2], *prediction.shape[1:])

    keys = ref.part(f"out/{name}" if name != "main" else "out")
    derived = {k.split("/")[1] for k in keys if k.startswith("grad_norm/")}
    pick = lambda p: {k: v for k, v in run(p)[0].items() if k in derived}
    grads = jax.jit(jax.jacrev(pick))(params) if derived else {}
    for term, grad in grads.items():
        for group in GROUPS:
            ours[f"grad_norm/{term}/{group}"] = group_norm(grad, group)
    at_z = lambda z, k: information.terms(z, outputs["mean"], outputs["variance"])[k]
    for term in ("loss_max", "loss_min"):
        ours[f"grad_z/{term}"] = jax.jit(jax.grad(at_z), static_argnums=1)(z, term)

    prefix = "" if name == "main" else f"{name}/"
    others = tuple(f"{v}/" for v in ref.variants())
    checked = set()
    for key, expected in ref.part(f"out/{prefix}"[:-1]).items():
        if key.endswith("_f64") or (name == "main" and key.startswith(others)):
            continue
        if key.startswith("grad/"):
            tensor = key.removeprefix("grad/")
            expected = at(to_tree({tensor: expected}), tensor)
            ref.check(key, at(grads["total_open"], tensor), expected)
        else:
            ref.check(prefix + key, ours[key])
        checked.add(key)
    assert set(TERMS) <= checked


def test_mimae_masks():
    cases = json.loads((FOLDER / "mimae_masks.json").read_text())
    for case in cases["cases"]:
        order = jnp.asarray(cases["orders"][str(case["L"])])
        ratio, views = case["ratio"], case["N"]
        visible = int(case["L"] * (1 - ratio))
        assert visible == case["keep"]
        drawn = tokens.circular_orders(order, views)[:, :visible]
        np.testing.assert_array_equal(drawn, case["views"])


def test_club():
    """Its bound and likelihood, from the mean and log-variance of its own network."""
    ref = Reference("club")
    y = jnp.asarray(ref["in/y"])[:, None]  # a single view of every example
    p = {k: jnp.asarray(v) for k, v in ref.part("params").items()}

    def network(p, x, name):
        h = jax.nn.relu(x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"])
        return h @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]

    def gaussian(p, x):
        logvar = jnp.tanh(network(p, x, "p_logvar"))
        return network(p, x, "p_mu")[:, None], jnp.exp(logvar)[:, None]

    def bound(p, x, y, negatives="batch"):
        return mi.club(y, *gaussian(p, x), negatives, "sum")

    def likelihood(p, x):
        # Theirs lacks 1/2 of the density and the constant.
        constant = y.shape[-1] * np.log(2 * np.pi)
        return constant - 2 * mi.negative_log_likelihood(y, *gaussian(p, x), "sum")

    x = jnp.asarray(ref["in/x"])
    ref.check("club", jax.jit(bound)(p, x, y))
    gp, gx, gy = jax.jit(jax.grad(bound, argnums=(0, 1, 2)))(p, x, y)
    ref.check("club_grad_x", gx)
    ref.check("club_grad_y", gy[:, 0])
    for name, grad in ref.part("out/club_grad").items():
        ref.check(f"club_grad/{name}", gp[name], grad)
    ref.check("loglikeli", jax.jit(likelihood)(p, x))
    ref.check("learning_loss", -jax.jit(likelihood)(p, x))
    grads = jax.jit(jax.grad(likelihood))(p, x)
    for name, grad in ref.part("out/loglikeli_grad").items():
        ref.check(f"loglikeli_grad/{name}", grads[name], grad)
    mean_params = {k.removeprefix("CLUBMean."): v for k, v in p.items() if "Mean" in k}
    mean = network(mean_params, x, "p_mu")[:, None]
    ref.check("club_mean", mi.club(y, mean, jnp.ones_like(mean), "batch", "sum"))
