"""MixedAE: mixed autoencoder for self-supervised visual representation learning
(Chen et al., CVPR 2023).

    M      = the source of each place of a mixed image, one of K = 1/r images
    x      = sum_i 1(M = i) x_i                                             (1)
    z      = encoder(x + positions), which at every layer
               adds the segment code of M to its tokens                     B.
               attends to the TopK homologous candidates of each query      (6)
    y_i    = decoder(z where M = i, mask tokens elsewhere)                  (2)
    L_rec  = mean over tokens not taken from image i of (y_i - t_i)^2       (3)
    L_con  = InfoNCE between the tokens of z, positives of the same source  (7)
    loss   = L_rec + weight * L_con                                         (8)

Our source is the paper's supplement; its main text was not available. What the
supplement leaves open is a field of the recipe: the K of the TopK, its first layer and
its treatment of the class token; the position, positives, temperature, weight and
projector of L_con; and the owner of cells that do not divide by K.

Departures: mixing is done on pixels, before the patch embedding, which is the same
(every patch keeps its place) at 1/K of the work. There is one class token per mixed
image, which unmixing gives to all its images; with masked self-attention there is one
per image, as a shared one would carry content from image to image. `mix_mode="full"`
encodes the K rotations of M, so that every token of every image is seen. `mixing=False`
is MAE on each image, with codes and L_con over the visible tokens of a group.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import homologous, homologous_attention, tokens
from mixjax.mixtures.homologous_attention import ATTENTION, TopK
from mixjax.objectives import pixels
from mixjax.objectives.token_contrast import POSITIVES, homologous_contrast
from mixjax.sharding import sub_batches
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array
MIX_MODES = ("compose", "full")
TRANSFER_SEGMENTS = ("none", "zero_id")


class Contrast(NamedTuple):
    """Equation 7, and the tokens that it compares."""

    position: str  # "encoder", "decoder", or the number of a layer
    positives: str  # see token_contrast
    temperature: float
    weight: float

    @property
    def layer(self) -> int | None:
        return int(self.position) if self.position.isdigit() else None


class Settings(NamedTuple):
    """The network and what the configuration says, as the functions below use it."""

    network: Network
    share: float  # r
    members: int  # K
    visible: int  # int(L r), the patches that an image shows
    cell: int  # side of a cell in tokens
    leftover: str  # see homologous.random_sources
    mixing: bool
    full: bool  # whether all K rotations of M are encoded
    attend: str  # one of ATTENTION
    topk: TopK
    segment: bool  # whether codes of M are added in pre-training
    transfer_segment: str  # one of TRANSFER_SEGMENTS
    recon: bool  # whether L_rec is on
    contrast: Contrast | None  # None: L_con is off
    norm_pix: bool

    @property
    def patch(self) -> int:
        return self.network.geometry.patch

    @property
    def length(self) -> int:
        rows, columns = self.network.geometry.grid
        return rows * columns


class Task(NamedTuple):
    """What the network sees, and what its outputs are compared with."""

    images: Array  # [G, H, W, C], mixed; or [B, H, W, C], each alone
    inputs: dict  # of Network.apply and Network.init
    kept: Array  # [n, L] for each image to reconstruct: 1 where the encoder saw it
    source: Array  # [G, T], the image of every token that L_con compares


# --- equations 1, 2 and 6: what the network sees -------------------------------------


def build_mixed_task(
    images: Array,
    source: Array,
    patch: int,
    *,
    attend: str,
    topk: TopK | None,
    segment: bool,
    contrast: Contrast | None,
) -> Task:
    """One mixed image per group: images [G, K, H, W, C], source [G, L]."""
    g, members = images.shape[:2]
    # A shared class token would leak from image to image, which masked_sa must not.
    classes = members if attend == "masked_sa" else 1

    def read_contrasted(outputs):
        if contrast.position == "decoder":
            # The decoder sees every image alone: take each token from its own image.
            decoded = outputs["decoded"]  # [G * K, L, d]
            decoded = decoded.reshape(g, members, *decoded.shape[1:])
            return homologous.mix(decoded, source)  # [G, L, d]
        place = "tokens" if contrast.layer is None else "watched"
        return outputs[place][:, classes:]  # [G, L, D]

    def restore(x, fill):  # equation 2
        return homologous.unmix_sequence(x, source, fill, members)

    encoder = {
        "class_tokens": classes,
        # equation 6
        "choose": homologous_attention.choose_keys(attend, source, members, topk),
        "segments": source if segment else None,
        "watch": contrast.layer if contrast else None,
    }
    inputs = {"encoder": encoder, "decoder": {"restore": restore}}
    if contrast:
        inputs["token_projector"] = {"read": read_contrasted}
    kept = homologous.shown_places(source, members)  # [G, K, L]
    kept = kept.reshape(g * members, -1).astype(jnp.float32)
    mixed_images = homologous.mix_images(images, source, patch)  # equation 1
    return Task(mixed_images, inputs, kept, source)


def build_masked_task(
    images: Array,
    masking: tokens.Masking,
    visible: int,
    members: int,
    *,
    segment: bool,
    contrast: Contrast | None,
) -> Task:
    """MAE on each image [B, H, W, C]; codes and L_con over groups (table A4c)."""
    b = images.shape[0]
    # The number of each image in its group, for all its visible tokens: [B, V].
    number = jnp.broadcast_to((jnp.arange(b) % members)[:, None], (b, visible))

    def read_contrasted(outputs):
        if contrast.position == "decoder":
            x = tokens.keep(outputs["decoded"], masking, visible)
        else:
            x = outputs["tokens" if contrast.layer is None else "watched"][:, 1:]
        return x.reshape(b // members, members * visible, -1)  # [G, K V, D]

    encoder = {
        "select": lambda x: tokens.keep(x, masking, visible),
        "segments": number if segment else None,
        "watch": contrast.layer if contrast else None,
    }
    decoder = {"restore": lambda x, fill: tokens.unshuffle(x, fill, masking)}
    inputs = {"encoder": encoder, "decoder": decoder}
    if contrast:
        inputs["token_projector"] = {"read": read_contrasted}
    source = number.reshape(b // members, members * visible)  # [G, K V]
    return Task(images, inputs, masking.kept, source)


def build_task(
    settings: Settings, images: Array, index: Array, rng: Array, *, full: bool
) -> Task:
    """Draws M for the groups of a batch and mixes, or masks each image alone.

    images [B, H, W, C], index [B]; consecutive examples are a group. full: all K
    rotations of M, not only the first.
    """
    members, segment, contrast = settings.members, settings.segment, settings.contrast
    if not settings.mixing:
        keys = example_keys(rng, index)
        masking = tokens.random_masking(keys, settings.length, settings.visible)
        return build_masked_task(
            images,
            masking,
            settings.visible,
            members,
            segment=segment,
            contrast=contrast,
        )
    keys = example_keys(rng, index[::members])  # [G], by the group's first example
    grid = settings.network.geometry.grid
    source = homologous.random_sources(
        keys, grid, settings.cell, members, settings.leftover
    )
    images = sub_batches.split(images, images.shape[0] // members)  # [G, K, H, W, C]
    if full:
        source = sub_batches.merge(homologous.rotations(source, members))  # [G K, L]
        images = jnp.repeat(images, members, axis=0)  # [G K, K, H, W, C]
    return build_mixed_task(
        images,
        source,
        settings.patch,
        attend=settings.attend,
        topk=settings.topk,
        segment=segment,
        contrast=contrast,
    )


# --- equations 3, 7 and 8: what it learns from ---------------------------------------


def make_targets(settings: Settings, images: Array) -> Array:
    """t_i of equation 3: images [B, H, W, C] -> [B, L, P], [B K, L, P] if full."""
    patches = pixels.patchify(images, settings.patch)  # [B, L, P]
    patches = pixels.normalise(patches) if settings.norm_pix else patches
    if settings.full:  # every group is reconstructed from each of its K mixed images
        patches = sub_batches.split(patches, images.shape[0] // settings.members)
        patches = sub_batches.merge(jnp.repeat(patches, settings.members, axis=0))
    return patches


def contrast_tokens(settings: Settings, projected: Array, source: Array, rng) -> Array:
    """Equation 7: projected [G, T, d], source [G, T] -> a scalar."""
    return homologous_contrast(
        projected,
        source,
        settings.contrast.temperature,
        positives=settings.contrast.positives,
        members=settings.members,
        # fold_in(rng, 1): other keys than those of the masks, which use rng itself.
        keys=jax.random.split(jax.random.fold_in(rng, 1), source.shape[0]),
    )


def topk_metrics(settings: Settings, notes: dict) -> dict[str, Array]:
    """Figure 6: the accuracy of the TopK in each of its layers; {} without TopK."""
    accuracy = notes.get(homologous_attention.ACCURACY)  # [layers]
    if accuracy is None:
        return {}
    layers = range(settings.topk.start, accuracy.shape[0])
    by_layer = {f"topk/layer_{layer:02}": accuracy[layer] for layer in layers}
    return {"topk/chance": jnp.float32(settings.share), **by_layer}


# --- the method ----------------------------------------------------------------------


def init(settings: Settings, rng, batch) -> Variables:
    # The example batch may hold a single image; a group of copies has the same shapes.
    images = jnp.repeat(batch["views"][0][:1], settings.members, axis=0)
    index = jnp.repeat(batch["index"][:1], settings.members)
    task = build_task(settings, images, index, rng, full=settings.full)
    params, stats = settings.network.init(rng, task.images, **task.inputs)
    if settings.contrast and "token_projector" not in params:
        raise UsageError("method.homocon=True needs a section model.token_projector.")
    return Variables(params, stats, teacher={}, memory={})


def loss(settings: Settings, params, state, batch, rng):
    images = batch["views"][0]
    task = build_task(settings, images, batch["index"], rng, full=settings.full)
    outputs, stats = settings.network.apply(
        params, state.stats, task.images, train=True, rng=rng, **task.inputs
    )
    total, metrics = 0.0, {}
    if settings.recon:
        target = make_targets(settings, images)
        total = pixels.masked_mse(outputs["prediction"], target, task.kept)  # (3)
        metrics["loss_recon"] = total
    if settings.contrast:
        value = contrast_tokens(settings, outputs["projected"], task.source, rng)  # (7)
        total += settings.contrast.weight * value  # equation 8
        metrics["loss_contrast"] = value
    metrics |= topk_metrics(settings, outputs["notes"])
    return total, Aux(stats, carry={}, metrics=metrics)


def show(settings: Settings, state, batch, rng) -> dict:
    members, patch = settings.members, settings.patch
    # Whole groups only; a batch smaller than one is repeated until it fills it.
    count = batch["index"].shape[0]
    rows = jnp.arange(max(members, count // members * members)) % count
    images, index = batch["views"][0][rows], batch["index"][rows]
    task = build_task(settings, images, index, rng, full=False)
    choose = task.inputs["encoder"].get("choose")
    if choose:
        grid = settings.network.geometry.grid
        task.inputs["encoder"]["choose"] = homologous_attention.watch_keys(
            choose, task.source, grid, members
        )
    outputs, _ = settings.network.apply(
        state.params, state.stats, task.images, train=False, **task.inputs
    )
    shown = pixels.panels(
        images, outputs["prediction"], task.kept, patch, settings.norm_pix
    )
    if not settings.mixing:
        return shown
    # What belongs to a group is repeated beside each of its images: [B, H, W, C].
    repeat = lambda x: jnp.repeat(x, members, axis=0)
    tint = homologous.paint(task.source, patch, task.images)
    tinted = repeat(0.5 * (task.images + tint))
    shown["mixture"] = repeat(task.images)
    shown["source of each patch"] = tinted
    if choose:
        seen_share = outputs["notes"][homologous_attention.SEEN][-1]  # [G, K, L]
        lit = tokens.of_pixels(seen_share, images.shape[1:3], patch)
        lit = sub_batches.merge(lit)  # [B, H, W, 1]
        dimmed = tinted * lit + images.min() * (1 - lit)
        shown["keys of its token nearest to the centre, last layer"] = dimmed
    return shown


def features(settings: Settings, state, images: Array) -> Array:
    """[B, H, W, C] -> [B, D], with the codes that `transfer_segment` asks for."""
    network = settings.network
    if settings.transfer_segment == "none":
        return network.features(state.params, state.stats, images)
    # As the first image of a group. The code of number 0 is not a vector of zeros.
    ids = jnp.zeros((images.shape[0], settings.length), jnp.int32)
    outputs = network.encode(state.params, state.stats, images, segments=ids)
    return outputs["features"]


def check(settings: Settings) -> None:
    """Raises UsageError for an unknown value or for losses that are both off."""
    topk, contrast = settings.topk, settings.contrast
    check_name("method.attend", settings.attend, ATTENTION)
    check_name("method.transfer_segment", settings.transfer_segment, TRANSFER_SEGMENTS)
    check_name("method.topk.class_key", topk.class_key, homologous_attention.CLASS_KEYS)
    if not (settings.recon or contrast):
        raise UsageError("method.recon and method.homocon are both off; leave one on.")
    if contrast:
        check_name("method.contrast.positives", contrast.positives, POSITIVES)
        if contrast.layer is None:
            places = ["encoder", "decoder"]
            check_name("method.contrast.position", contrast.position, places)


def make(
    network: Network,
    *,
    r: float,
    mask_patch: int,
    leftover: str,
    mixing: bool,
    mix_mode: str,
    attend: str,
    topk: Mapping,
    segment: bool,
    transfer_segment: str,
    recon: bool,
    homocon: bool,
    contrast: Mapping,
    norm_pix: bool,
) -> Method:
    """MixedAE with every switch that the paper ablates.

    r: the share of each image in a mixed one, 1/K. mask_patch: the side in pixels of
    the cells that are dealt to images; leftover: see homologous.random_sources.
    mixing: False is MAE with codes and L_con. mix_mode: "compose", one mixed image per
    group, or "full", K of them. attend: "homologous" (see TopK), "global" (the naive
    baseline) or "masked_sa". segment: codes in pre-training; transfer_segment: in the
    features, "none" or "zero_id". recon, homocon: the two losses; see Contrast.
    """
    check_name("method.mix_mode", mix_mode, MIX_MODES)
    settings = Settings(
        network=network,
        share=r,
        members=homologous.count_members(r),
        visible=int(network.geometry.grid[0] * network.geometry.grid[1] * r),
        cell=tokens.count_cell_side(mask_patch, network.geometry.patch),
        leftover=leftover,
        mixing=mixing,
        full=mixing and mix_mode == "full",
        attend=attend,
        topk=call("method.topk", TopK, topk),
        segment=segment,
        transfer_segment=transfer_segment,
        recon=recon,
        contrast=call("method.contrast", Contrast, contrast) if homocon else None,
        norm_pix=norm_pix,
    )
    if not settings.topk.k:  # 0: as many keys as an image has patches
        settings = settings._replace(topk=settings.topk._replace(k=settings.visible))
    check(settings)
    return Method(
        init=partial(init, settings),
        loss=partial(loss, settings),
        update=lambda state, carry: state,
        features=partial(features, settings),
        show=partial(show, settings),
        together=settings.members,  # a mixed image is made of K consecutive examples
    )
