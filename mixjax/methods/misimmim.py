"""MI-SimMIM: MI-MAE's information losses on SimMIM (MI-MAE, section 5.1).

    M_1, M_2 = complementary halves of the cells: what one view sees, the other predicts
    L_rec    = SimMIM's loss, averaged over the two views
    zhat_j   = mean of the final map of view j
    x_j      = mean patch embedding of what view j sees
    loss     = lam1 L_rec + gate (lam2 L_max + lam3 L_min) + L_approx    as in mimae.py

Departures: latents pool all places of the map, hidden ones included, without the class
token. The gate's level is meant for normalised pixels; SimMIM's L1 is below it almost
from the start, and the recipe keeps the paper's number.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.methods import mimae, simmim
from mixjax.mixtures import tokens
from mixjax.objectives.mutual_information import Gate, Information, closed_gate
from mixjax.state import ALL, Aux, Method, Network, Variables, example_keys

Array = jax.Array
VIEWS = 2  # a mask and its complement


class Settings(NamedTuple):
    """The network and what the configuration says, as the functions below use it."""

    network: Network
    patch: int  # side of an input token in pixels
    grid: tuple[int, int]  # rows, columns of tokens
    cell: int  # side of a cell in tokens
    mask_ratio: float
    information: Information
    gate: Gate


def draw_halves(settings: Settings, rng: Array, index: Array) -> Array:
    """What each of the two views sees: kept [B, 2, L], 1 = seen; index [B]."""
    return tokens.cell_masking(
        example_keys(rng, index),
        settings.grid,
        settings.cell,
        settings.mask_ratio,
        VIEWS,
    )


def pool_latents(outputs: dict) -> Array:
    """zhat, the latent of every view: map [B * 2, h, w, D] -> [B, 2, D]."""
    z = outputs["map"].mean(axis=(1, 2))  # [B * 2, D]
    return z.reshape(-1, VIEWS, z.shape[-1])


def view_inputs(outputs: dict, kept: Array) -> Array:
    """x_j, the mean embedding of what a view sees, [B, 2, Dx]; no gradient enters.

    The embedding is the one before mask tokens replace hidden places; kept: [B, 2, L].
    """
    weights = kept / kept.sum(axis=-1, keepdims=True)
    x = jnp.einsum("bnl,bld->bnd", weights, outputs["embedding"])
    return jax.lax.stop_gradient(x)


def part_inputs(kept: Array) -> dict:
    """The inputs of encoder and V for both views; kept [B, 2, L]."""

    def read(outputs):
        # V predicts a Gaussian of the latent's width, which is the map's.
        return view_inputs(outputs, kept), outputs["map"].shape[-1]

    return {**simmim.part_inputs(kept), "variational": {"read": read}}


def used_inputs(settings: Settings, kept: Array) -> dict:
    """`part_inputs` without those of V where no loss needs it: it may be absent."""
    inputs = part_inputs(kept)
    if not settings.information.used:
        del inputs["variational"]
    return inputs


def init(settings: Settings, rng, batch) -> Variables:
    kept = draw_halves(settings, rng, batch["index"])
    params, stats = settings.network.init(
        rng, batch["views"][0], **used_inputs(settings, kept)
    )
    mimae.check_variational(settings.information, params)
    return Variables(params, stats, teacher={}, memory=closed_gate())


def loss(settings: Settings, params, state, batch, rng):
    images = batch["views"][0]
    kept = draw_halves(settings, rng, batch["index"])
    outputs, stats = settings.network.apply(
        params, state.stats, images, train=True, rng=rng, **used_inputs(settings, kept)
    )
    reconstruction = simmim.reconstruction_loss(
        outputs["prediction"], images, kept, settings.patch
    )
    total, metrics = mimae.weigh_losses(
        settings.information,
        settings.gate,
        state.memory,
        reconstruction,
        pool_latents(outputs),
        outputs,
    )
    return total, Aux(stats, carry={"loss_rec": reconstruction}, metrics=metrics)


def show(settings: Settings, state, batch, rng) -> dict:
    """The first view alone: the second is its complement."""
    images = batch["views"][0]
    kept = draw_halves(settings, rng, batch["index"])
    outputs, _ = settings.network.apply(
        state.params, state.stats, images, train=False, **used_inputs(settings, kept)
    )
    first = outputs["prediction"][::VIEWS]  # [B, H, W, C]
    return simmim.panels(images, first, kept[:, 0], settings.patch)


def make(
    network: Network,
    *,
    mask_ratio: float,
    mask_patch: int,
    information: Mapping,
    gate: Mapping,
) -> Method:
    """MI-SimMIM; mask_patch: the side of a cell in pixels; others as in mimae.make."""
    settings = Settings(
        network=network,
        patch=network.geometry.patch,
        grid=network.geometry.grid,
        cell=tokens.count_cell_side(mask_patch, network.geometry.patch),
        mask_ratio=mask_ratio,
        information=call("method.information", Information, information).check(),
        gate=call("method.gate", Gate, gate).check(),
    )
    return Method(
        init=partial(init, settings),
        loss=partial(loss, settings),
        update=partial(mimae.update, settings.gate),
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=partial(show, settings),
        together=ALL if settings.information.used else 1,
    )
