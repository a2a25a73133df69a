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

with x_j the mean patch embedding of the visible tokens. Which parameters a loss may
touch is settled by three stops, in one backward pass: no gradient enters x_j; in L_min
none enters V's mean and variance; in L_appr none enters zhat_j. The gate opens once
L_rec is below `gate.level`.

Departures (the paper is silent or contradicts itself; each is a field): latents are
pooled by the mean over all tokens after the final norm, V's variance has a floor, the
negatives of L_min are the views of the same image, the gate latches on a moving average
of L_rec. Patches are embedded once for all views, which is the same and saves N - 1
times the work.
"""

from collections.abc import Mapping

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


def pooled(outputs: dict, pool: str, views: int) -> Array:
    """The latent of every view: tokens [B * N, 1 + V, D] -> [B, N, D] (or V D)."""
    x = outputs["tokens"]
    by_pool = {
        "mean_all": lambda: x.mean(axis=1),
        "mean_patch": lambda: x[:, 1:].mean(axis=1),
        "class": lambda: x[:, 0],
        "flatten": lambda: x.reshape(x.shape[0], -1),
    }
    z = by_pool[pool]()
    return z.reshape(-1, views, z.shape[-1])  # [B, N, D]


def view_inputs(outputs: dict, masking: Masking, kind: str, patch: int) -> Array:
    """x_j, the mean over a view's visible patches, [B, N, Dx]; no gradient enters.

    masking: of [B, N, L]. The bias of the embedding is in, its position is not, unless
    asked for: a mean of positions says which patches are visible, and nothing else.
    """
    if kind == "pixels":
        x = pixels.patchify(outputs["images"], patch)
    else:
        x = outputs["embedding"]  # [B, L, D]
    if kind == "embedding_and_position":
        x = x + outputs["positions"]
    kept = masking.kept / masking.kept.sum(axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.einsum("bnl,bld->bnd", kept, x))


def inputs(masking: Masking, visible: int, pool: str, kind: str, patch: int) -> dict:
    """What the network's parts are given to see N views of each image."""
    views, each = masking.kept.shape[1], tokens.each_view(masking)

    def read(outputs):
        z = pooled(outputs, pool, views)
        return view_inputs(outputs, masking, kind, patch), z.shape[-1]

    return {
        "encoder": {"select": lambda x: tokens.keep_views(x, masking, visible)},
        "decoder": {"restore": lambda x, fill: tokens.unshuffle(x, fill, each)},
        "variational": {"read": read},
    }


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

    views: N, 0 for as many as cover the image. mask_mode: "circular" (disjoint where
    N views fit into the image) or "independent". latent_pool: one of POOLS;
    variational_input: one of INPUTS. information: see Information; with lam2, lam3
    and approx 0 this is MAE with N views. gate: see Gate.
    """
    grid, patch = network.geometry.grid, network.geometry.patch
    length = grid[0] * grid[1]
    visible = int(length * (1 - mask_ratio))
    if not 0 < visible < length:
        raise UsageError(
            f"method.mask_ratio={mask_ratio} keeps {visible} of {length} patches; "
            f"it must leave at least one to see and one to predict."
        )
    views = views or tokens.views_that_cover(mask_ratio)
    check_name("method.latent_pool", latent_pool, POOLS)
    check_name("method.variational_input", variational_input, INPUTS)
    information = call("method.information", Information, information).check()
    gate = call("method.gate", Gate, gate).check()
    if views < 2 and information.used:
        raise UsageError(f"method.views={views}: L_max and L_min need at least 2.")

    def masks(rng, index):
        keys = example_keys(rng, index)
        return tokens.view_masking(keys, length, visible, views, mask_mode)

    def run(function, batch, masking, *args, **how):
        given = inputs(masking, visible, latent_pool, variational_input, patch)
        if not information.used:
            del given["variational"]
        return function(*args, batch["views"][0], **given, **how)

    def init(rng, batch):
        params, stats = run(network.init, batch, masks(rng, batch["index"]), rng)
        if information.used and "variational" not in params:
            raise UsageError("method.information needs a section model.variational.")
        return Variables(params, stats, teacher={}, memory=closed_gate())

    def loss(params, state, batch, rng):
        masking = masks(rng, batch["index"])
        how = {"train": True, "rng": rng}
        outputs, stats = run(network.apply, batch, masking, params, state.stats, **how)
        target = pixels.patchify(batch["views"][0], patch)
        target = pixels.normalise(target) if norm_pix else target
        recon = view_reconstruction_loss(outputs["prediction"], target, masking.kept)
        metrics = {"loss_rec": recon}
        total = information.lam1 * recon
        if information.used:
            z = pooled(outputs, latent_pool, views)
            found = information.terms(z, outputs["mean"], outputs["variance"])
            is_open = gate.factor(state.memory, recon)
            total += information.total(found, is_open)
            metrics |= found | {"gate": is_open}
        return total, Aux(stats, carry={"loss_rec": recon}, metrics=metrics)

    def update(state, carry):
        memory = gate.after(state.memory, carry["loss_rec"])
        return state.replace(memory=memory)

    def show(state, batch, rng):
        masking = masks(rng, batch["index"])
        how = {"train": False}
        outputs, _ = run(
            network.apply, batch, masking, state.params, state.stats, **how
        )
        prediction = outputs["prediction"]
        prediction = prediction.reshape(-1, views, *prediction.shape[1:])
        found = {}
        for n in range(views):
            one = pixels.panels(
                batch["views"][0], prediction[:, n], masking.kept[:, n], patch, norm_pix
            )
            found["input"] = one["input"]
            whole = "reconstruction and kept patches"
            found[f"kept in view {n + 1}"] = one["kept patches"]
            found[f"view {n + 1}: {whole}"] = one[whole]
        return found

    return Method(
        init=init,
        loss=loss,
        update=update,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        together=ALL if information.used else 1,
    )


def view_reconstruction_loss(prediction: Array, target: Array, kept: Array) -> Array:
    """MAE's loss, each view on its own hidden patches, averaged over views.

    prediction [B * N, L, P], target [B, L, P], kept [B, N, L]; a scalar.
    """
    b, n, length = kept.shape
    prediction = prediction.reshape(b, n, length, -1)
    error = jnp.square(prediction - target[:, None]).mean(axis=-1)  # [B, N, L]
    hidden = 1.0 - kept
    return (error * hidden).sum() / hidden.sum()
