"""MI-MAE: learning mask invariant mutual information for masked image modeling (ICLR
2025).

    views   N visible sets of each image, disjoint where they can be     "orthogonal"
    z_j     = encoder(view j), zhat_j = its pooled tokens
    L_rec   = MAE's loss, averaged over views                               (1)
    L_max   = InfoNCE between the zhat of all views of the batch            (7, 8)
    V       : x_j -> mean, variance of a Gaussian over zhat_j
    L_appr  = -log q(zhat_j|x_j), trains V only                             (9)
    L_min   = CLUB: log q(zhat_j|x_j) - mean_k log q(zhat_k|x_j)            (10)
    loss    = lam1 L_rec + gate (lam2 L_max + lam3 L_min) + L_appr          algorithm 1

with x_j the mean patch embedding of the visible tokens. Three stopped gradients decide
which parameters a loss can change, in a single backward pass: no gradient enters x_j;
L_min sends none into V's mean and variance; L_appr sends none into zhat_j. The gate
opens once L_rec is below `gate.level`.

Departures (the paper is silent or contradicts itself; each is a field): latents are
pooled by the mean over all tokens after the final norm, V's variance has a floor, the
negatives of L_min are the views of the same image, and the gate latches on a moving
average of L_rec. Patches are embedded once for all views: the result is the same and
N - 1 embeddings are saved.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import tokens
from mixjax.mixtures.tokens import Masking
from mixjax.objectives import pixels
from mixjax.objectives.mutual_information import Gate, Information, closed_gate
from mixjax.state import ALL, Aux, Method, Network, Variables, example_keys

Array = jax.Array
POOLS = ("mean_all", "mean_patch", "class", "flatten")
INPUTS = ("embedding", "embedding_and_position", "pixels")


class Settings(NamedTuple):
    """The network and what the configuration says, as the functions below use it."""

    network: Network
    patch: int  # side of a patch in pixels
    length: int  # L
    visible: int  # V, the patches that one view keeps
    views: int  # N
    mask_mode: str  # see tokens.view_masking
    norm_pix: bool  # whether the targets are normalised patch by patch
    latent_pool: str  # one of POOLS
    variational_input: str  # one of INPUTS
    information: Information
    gate: Gate


# --- views and latents ---------------------------------------------------------------


def draw_views(settings: Settings, rng: Array, index: Array) -> Masking:
    """Which patches each view keeps, a Masking of [B, N, L]; index [B]."""
    return tokens.view_masking(
        example_keys(rng, index),
        settings.length,
        settings.visible,
        settings.views,
        settings.mask_mode,
    )


def pool_latents(outputs: dict, pool: str, views: int) -> Array:
    """zhat, the latent of every view: tokens [B * N, 1 + V, D] -> [B, N, D].

    With pool "flatten" the last axis is that of all tokens, (1 + V) D.
    """
    x = outputs["tokens"]  # [B * N, 1 + V, D], the class token first
    pooled_by = {
        "mean_all": lambda: x.mean(axis=1),
        "mean_patch": lambda: x[:, 1:].mean(axis=1),
        "class": lambda: x[:, 0],
        "flatten": lambda: x.reshape(x.shape[0], -1),
    }
    z = pooled_by[pool]()  # [B * N, D]
    return z.reshape(-1, views, z.shape[-1])  # [B, N, D]


def view_inputs(outputs: dict, masking: Masking, kind: str, patch: int) -> Array:
    """x_j, the mean over a view's visible patches, [B, N, Dx]; no gradient enters.

    masking: of [B, N, L]. The embedding includes its bias. Its position is left out
    unless `kind` asks for it: a mean of positions only tells which patches are visible.
    """
    if kind == "pixels":
        x = pixels.patchify(outputs["images"], patch)  # [B, L, P]
    else:
        x = outputs["embedding"]  # [B, L, D]
    if kind == "embedding_and_position":
        x = x + outputs["positions"]
    weights = masking.kept / masking.kept.sum(axis=-1, keepdims=True)  # [B, N, L]
    return jax.lax.stop_gradient(jnp.einsum("bnl,bld->bnd", weights, x))


def part_inputs(
    masking: Masking, visible: int, pool: str, kind: str, patch: int
) -> dict:
    """The inputs of encoder, decoder and V for N views; masking of [B, N, L].

    pool: one of POOLS; kind: one of INPUTS.
    """
    views, flat = masking.kept.shape[1], tokens.each_view(masking)  # flat: [B * N, L]

    def read(outputs):
        z = pool_latents(outputs, pool, views)
        # V predicts a Gaussian of the latent's width.
        return view_inputs(outputs, masking, kind, patch), z.shape[-1]

    return {
        "encoder": {"select": lambda x: tokens.keep_views(x, masking, visible)},
        "decoder": {"restore": lambda x, fill: tokens.unshuffle(x, fill, flat)},
        "variational": {"read": read},
    }


def used_inputs(settings: Settings, masking: Masking) -> dict:
    """`part_inputs` without those of V where no loss needs it: it may be absent."""
    inputs = part_inputs(
        masking,
        settings.visible,
        settings.latent_pool,
        settings.variational_input,
        settings.patch,
    )
    if not settings.information.used:
        del inputs["variational"]
    return inputs


# --- losses --------------------------------------------------------------------------


def view_reconstruction_loss(prediction: Array, target: Array, kept: Array) -> Array:
    """Equation 1: each view is scored on its own hidden patches; mean over views.

    prediction [B * N, L, P], target [B, L, P], kept [B, N, L]; a scalar.
    """
    b, n, length = kept.shape
    prediction = prediction.reshape(b, n, length, -1)  # [B, N, L, P]
    error = jnp.square(prediction - target[:, None]).mean(axis=-1)  # [B, N, L]
    hidden = 1.0 - kept
    return (error * hidden).sum() / hidden.sum()


def weigh_losses(
    information: Information,
    gate: Gate,
    memory: dict,
    reconstruction: Array,
    latents: Array,
    outputs: dict,
) -> tuple[Array, dict[str, Array]]:
    """Algorithm 1: (the total loss, its terms as metrics).

    latents: zhat [B, N, D]; outputs: of V, mean and variance [B, N, D], if
    `information` uses them. memory: the gate's.
    """
    total = information.lam1 * reconstruction
    if not information.used:
        return total, {"loss_rec": reconstruction}
    terms = information.terms(latents, outputs["mean"], outputs["variance"])
    is_open = gate.factor(memory, reconstruction)  # 1 or 0, no branch: one compilation
    total += information.total(terms, is_open)
    return total, {"loss_rec": reconstruction, "gate": is_open, **terms}


def check_variational(information: Information, params: dict) -> None:
    """Raises UsageError if the losses need a network V that the model lacks."""
    if information.used and "variational" not in params:
        raise UsageError("method.information needs a section model.variational.")


# --- the method ----------------------------------------------------------------------


def init(settings: Settings, rng, batch) -> Variables:
    masking = draw_views(settings, rng, batch["index"])
    # V is as wide as the latent, so its shapes follow from the views.
    params, stats = settings.network.init(
        rng, batch["views"][0], **used_inputs(settings, masking)
    )
    check_variational(settings.information, params)
    return Variables(params, stats, teacher={}, memory=closed_gate())


def loss(settings: Settings, params, state, batch, rng):
    images = batch["views"][0]
    masking = draw_views(settings, rng, batch["index"])
    outputs, stats = settings.network.apply(
        params,
        state.stats,
        images,
        train=True,
        rng=rng,
        **used_inputs(settings, masking),
    )
    target = pixels.patchify(images, settings.patch)  # [B, L, P]
    target = pixels.normalise(target) if settings.norm_pix else target
    reconstruction = view_reconstruction_loss(
        outputs["prediction"], target, masking.kept
    )
    total, metrics = weigh_losses(
        settings.information,
        settings.gate,
        state.memory,
        reconstruction,
        pool_latents(outputs, settings.latent_pool, settings.views),
        outputs,
    )
    return total, Aux(stats, carry={"loss_rec": reconstruction}, metrics=metrics)


def update(gate: Gate, state, carry):
    """After a step, the gate takes in the step's L_rec."""
    return state.replace(memory=gate.after(state.memory, carry["loss_rec"]))


def show(settings: Settings, state, batch, rng) -> dict:
    images = batch["views"][0]
    masking = draw_views(settings, rng, batch["index"])
    outputs, _ = settings.network.apply(
        state.params,
        state.stats,
        images,
        train=False,
        **used_inputs(settings, masking),
    )
    prediction = outputs["prediction"]  # [B * N, L, P]
    prediction = prediction.reshape(-1, settings.views, *prediction.shape[1:])
    shown = {}
    for n in range(settings.views):
        panels = pixels.panels(
            images,
            prediction[:, n],
            masking.kept[:, n],
            settings.patch,
            settings.norm_pix,
        )
        shown["input"] = panels["input"]
        shown[f"kept in view {n + 1}"] = panels["kept patches"]
        painted = "reconstruction and kept patches"
        shown[f"view {n + 1}: {painted}"] = panels[painted]
    return shown


def make(
    network: Network,
    *,
    views: int,
    mask_ratio: float,
    mask_mode: str,
    norm_pix: bool,
    latent_pool: str,
    variational_input: str,
    information: Mapping,
    gate: Mapping,
) -> Method:
    """MI-MAE with every switch that the paper ablates.

    views: N, or 0 for as many as cover the image. mask_mode: "circular" (disjoint if N
    views fit into the image) or "independent". latent_pool: one of POOLS;
    variational_input: one of INPUTS. information: the fields of Information; with
    lam2, lam3 and approx 0 this is MAE with N views. gate: the fields of Gate.
    """
    grid, patch = network.geometry.grid, network.geometry.patch
    length = grid[0] * grid[1]
    visible = tokens.count_visible(length, mask_ratio)
    check_name("method.latent_pool", latent_pool, POOLS)
    check_name("method.variational_input", variational_input, INPUTS)
    settings = Settings(
        network=network,
        patch=patch,
        length=length,
        visible=visible,
        views=views or tokens.views_that_cover(mask_ratio),
        mask_mode=mask_mode,
        norm_pix=norm_pix,
        latent_pool=latent_pool,
        variational_input=variational_input,
        information=call("method.information", Information, information).check(),
        gate=call("method.gate", Gate, gate).check(),
    )
    used = settings.information.used
    if settings.views < 2 and used:
        raise UsageError(
            f"method.views={settings.views}: L_max and L_min need at least 2."
        )
    return Method(
        init=partial(init, settings),
        loss=partial(loss, settings),
        update=partial(update, settings.gate),
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=partial(show, settings),
        # L_max contrasts the views of all images of the batch.
        together=ALL if used else 1,
    )
