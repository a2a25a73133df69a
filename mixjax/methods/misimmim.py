"""MI-SimMIM: MI-MAE's information losses on SimMIM (MI-MAE, section 5.1).

    M_1, M_2 = complementary halves of the cells: what one view sees, the other predicts
    L_rec    = SimMIM's loss, averaged over the two views
    zhat_j   = mean of the final map of view j
    x_j      = mean patch embedding of what view j sees
    loss     = lam1 L_rec + gate (lam2 L_max + lam3 L_min) + L_approx    as in mimae.py

Departures: latents pool all places of the map, hidden ones too, and leave the class
token out. The gate's level presumes normalised pixels; SimMIM's L1 is below it almost
from the start, and the recipe keeps the paper's number.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError
from mixjax.methods import simmim
from mixjax.mixtures import tokens
from mixjax.objectives.mutual_information import Gate, Information, closed_gate
from mixjax.state import ALL, Aux, Method, Network, Variables, example_keys

Array = jax.Array
VIEWS = 2


def pooled(outputs: dict) -> Array:
    """The latent of every view: map [B * 2, h, w, D] -> [B, 2, D]."""
    z = outputs["map"].mean(axis=(1, 2))
    return z.reshape(-1, VIEWS, z.shape[-1])


def view_inputs(outputs: dict, kept: Array) -> Array:
    """x_j, the mean embedding of what a view sees, [B, 2, Dx]; no gradient enters.

    Before mask tokens come in; kept: [B, 2, L].
    """
    share = kept / kept.sum(axis=-1, keepdims=True)
    x = jnp.einsum("bnl,bld->bnd", share, outputs["embedding"])
    return jax.lax.stop_gradient(x)


def inputs(kept: Array) -> dict:
    """What the network's parts are given; kept [B, 2, L]."""

    def read(outputs):
        return view_inputs(outputs, kept), outputs["map"].shape[-1]

    return {**simmim.inputs(kept), "variational": {"read": read}}


def make(
    network: Network,
    *,
    mask_ratio: float,
    mask_patch: int,
    information: Mapping,
    gate: Mapping,
) -> Method:
    """MI-SimMIM; mask_patch: the side of a cell in pixels; the rest as in mimae."""
    grid, patch = network.geometry.grid, network.geometry.patch
    cell = simmim.cell_of(network, mask_patch)
    information = call("method.information", Information, information).check()
    gate = call("method.gate", Gate, gate).check()

    def masks(rng, index):
        keys = example_keys(rng, index)
        return tokens.cell_masking(keys, grid, cell, mask_ratio, VIEWS)

    def run(function, batch, kept, *args, **how):
        given = inputs(kept)
        if not information.used:
            del given["variational"]
        return function(*args, batch["views"][0], **given, **how)

    def init(rng, batch):
        params, stats = run(network.init, batch, masks(rng, batch["index"]), rng)
        if information.used and "variational" not in params:
            raise UsageError("method.information needs a section model.variational.")
        return Variables(params, stats, teacher={}, memory=closed_gate())

    def loss(params, state, batch, rng):
        images, kept = batch["views"][0], masks(rng, batch["index"])
        how = {"train": True, "rng": rng}
        outputs, stats = run(network.apply, batch, kept, params, state.stats, **how)
        recon = simmim.reconstruction_loss(outputs["prediction"], images, kept, patch)
        metrics = {"loss_rec": recon}
        total = information.lam1 * recon
        if information.used:
            z = pooled(outputs)
            found = information.terms(z, outputs["mean"], outputs["variance"])
            is_open = gate.factor(state.memory, recon)
            total += information.total(found, is_open)
            metrics |= found | {"gate": is_open}
        return total, Aux(stats, carry={"loss_rec": recon}, metrics=metrics)

    def show(state, batch, rng):
        images, kept = batch["views"][0], masks(rng, batch["index"])
        whole = state.params, state.stats
        outputs, _ = run(network.apply, batch, kept, *whole, train=False)
        first = outputs["prediction"][::VIEWS]  # [B, H, W, C]
        return simmim.panels(images, first, kept[:, 0], patch)

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state.replace(
            memory=gate.after(state.memory, carry["loss_rec"])
        ),
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        together=ALL if information.used else 1,
    )
