"""MixedAE: mixed autoencoder for self-supervised visual representation learning
(Chen et al., CVPR 2023).

    M      = each place of a group's picture belongs to one of K = 1/r images
    x      = sum_i 1(M = i) x_i                                             (1)
    z      = encoder(x + positions), which at every layer
               adds the segment code of M to its tokens                     B.
               attends to the TopK homologous candidates of each query      (6)
    y_i    = decoder(z where M = i, mask tokens elsewhere)                  (2)
    L_rec  = mean over tokens not taken from image i of (y_i - t_i)^2       (3)
    L_con  = InfoNCE between the tokens of z, positives of one source       (7)
    loss   = L_rec + weight * L_con                                         (8)

The main text of the paper is not among our sources (its supplement is), so what it
settles and the supplement does not is a field of the recipe: K of the TopK, its first
layer and what becomes of the class token, the position, positives, temperature, weight
and projector of L_con, and what is done with cells that do not divide by K.

Departures: mixing is done on pixels, before the patch embedding, which is the same
(every patch keeps its place) at 1/K of the work. Class tokens: one per mixed picture,
given to all its images when unmixing; with masked self-attention one per image, as a
shared one would carry content from image to image. `mix_mode="full"` encodes the K
rotations of M, so that every token of every image is seen. `mixing=False` is MAE on
each image, with codes and L_con over the visible tokens of a group.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import homologous, tokens
from mixjax.objectives import pixels
from mixjax.objectives.token_contrast import POSITIVES, homologous_contrast
from mixjax.sharding import sub_batches
from mixjax.state import Aux, Method, Network, Variables, example_keys

Array = jax.Array
ATTENTION = ("global", "homologous", "masked_sa")
NOTE = "topk_accuracy"


class TopK(NamedTuple):
    """Homologous attention: how many keys stay, and from which layer on."""

    k: int
    start: int
    class_key: str  # see homologous.topk_keys


class Contrast(NamedTuple):
    """Equation 7, and where it looks."""

    position: str  # "encoder", "decoder", or the number of a layer
    positives: str  # see token_contrast
    temperature: float
    weight: float

    @property
    def layer(self) -> int | None:
        return int(self.position) if self.position.isdigit() else None


class Task(NamedTuple):
    """What a network gets to see and has to do, before it is run."""

    pictures: Array  # [G, H, W, C], mixed; or the images [B, H, W, C]
    inputs: dict  # of Network.apply and Network.init
    kept: Array  # [n, L], for each image to be painted: 1 where it was seen
    source: Array  # [G, T], the image of every token that L_con compares


def key_choice(attend: str, source: Array, members: int, topk: TopK | None):
    """Which keys a query sees: (layer, logits) -> (bool, notes), or None for all."""
    if attend == "global":
        return None
    if attend == "masked_sa":
        own = homologous.homologous_keys(source, members)
        return lambda layer, logits: (own, {})

    def choose(layer, logits):
        # Under scan the layer is an array and every layer does the work of the TopK.
        if isinstance(layer, int) and layer < topk.start:
            everything = jnp.ones((source.shape[0], 1, *logits.shape[2:]), bool)
            return None, {NOTE: homologous.sampling_accuracy(everything, source)}
        kept = homologous.topk_keys(logits, topk.k, topk.class_key)
        kept = kept if isinstance(layer, int) else kept | (layer < topk.start)
        return kept, {NOTE: homologous.sampling_accuracy(kept, source)}

    return choose


def watch_keys(choose: Callable, source: Array, grid, members: int) -> Callable:
    """`choose` that also notes "seen" [G, K, L], to be looked at.

    Of one token of each image, the one nearest to the centre: the share of the heads
    in which it sees a key.
    """
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    middle = (grid[0] - 1) / 2, (grid[1] - 1) / 2
    distance = jnp.square(row - middle[0]) + jnp.square(column - middle[1])
    own = source[:, None] == jnp.arange(members)[:, None]  # [G, K, L]
    query = jnp.where(own, distance, jnp.inf).argmin(axis=-1)  # [G, K]

    def watched(layer, logits):
        kept, notes = choose(layer, logits)
        whole = jnp.ones_like(logits) if kept is None else kept
        classes = logits.shape[-1] - source.shape[1]
        place = query[:, None, :, None] + classes
        rows = jnp.take_along_axis(whole.astype(jnp.float32), place, axis=2)
        return kept, notes | {"seen": rows[..., classes:].mean(axis=1)}

    return watched


def mixed(
    images: Array,
    source: Array,
    patch: int,
    *,
    attend: str,
    topk: TopK | None,
    segment: bool,
    contrast: Contrast | None,
) -> Task:
    """One picture a group: images [G, K, H, W, C], source [G, L]."""
    g, members = images.shape[:2]
    classes = members if attend == "masked_sa" else 1

    def contrasted(outputs):
        if contrast.position == "decoder":
            # Of every token, what the decoder made of it in its own image.
            decoded = outputs["decoded"]  # [G * K, L, d]
            decoded = decoded.reshape(g, members, *decoded.shape[1:])
            return homologous.mix(decoded, source)
        place = "tokens" if contrast.layer is None else "watched"
        return outputs[place][:, classes:]  # [G, L, D]

    def restore(x, fill):
        return homologous.unmix_sequence(x, source, fill, members)

    encoder = {
        "class_tokens": classes,
        "choose": key_choice(attend, source, members, topk),
        "segments": source if segment else None,
        "watch": contrast.layer if contrast else None,
    }
    inputs = {"encoder": encoder, "decoder": {"restore": restore}}
    if contrast:
        inputs["token_projector"] = {"read": contrasted}
    own = source[:, None] == jnp.arange(members)[None, :, None]  # [G, K, L]
    kept = own.reshape(g * members, -1).astype(jnp.float32)
    return Task(homologous.mix_images(images, source, patch), inputs, kept, source)


def apart(
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
    number = jnp.broadcast_to((jnp.arange(b) % members)[:, None], (b, visible))

    def contrasted(outputs):
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
        inputs["token_projector"] = {"read": contrasted}
    source = number.reshape(b // members, members * visible)
    return Task(images, inputs, masking.kept, source)


def check(attend, mix_mode, transfer_segment, recon, topk, contrast) -> None:
    """UsageError for a value that is not one of those known, or that contradicts."""
    check_name("method.attend", attend, ATTENTION)
    check_name("method.mix_mode", mix_mode, ["compose", "full"])
    check_name("method.transfer_segment", transfer_segment, ["none", "zero_id"])
    check_name("method.topk.class_key", topk.class_key, homologous.CLASS_KEYS)
    if not (recon or contrast):
        raise UsageError("method.recon and method.homocon are both off; leave one on.")
    if contrast:
        check_name("method.contrast.positives", contrast.positives, POSITIVES)
        places = ["encoder", "decoder"]
        if contrast.layer is None:
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

    r: the share of each image in a picture, 1/K. mask_patch: pixels, the side of the
    cells that are dealt to images; leftover: see homologous.random_sources. mixing:
    False is MAE with codes and L_con. mix_mode: "compose", one picture a group, or
    "full", K of them. attend: "homologous" (see TopK), "global" (the naive baseline)
    or "masked_sa". segment: codes in pre-training; transfer_segment: in the features,
    "none" or "zero_id". recon, homocon: the two losses; see Contrast.
    """
    grid, patch = network.geometry.grid, network.geometry.patch
    length, members = grid[0] * grid[1], homologous.members_of(r)
    visible, cell = int(length * r), mask_patch // patch
    full = mixing and mix_mode == "full"
    topk = call("method.topk", TopK, topk)
    topk = topk._replace(k=topk.k or visible)
    contrast = call("method.contrast", Contrast, contrast) if homocon else None
    check(attend, mix_mode, transfer_segment, recon, topk, contrast)
    if mask_patch % patch:
        raise UsageError(
            f"method.mask_patch={mask_patch} is not a multiple of "
            f"model.encoder.patch={patch}."
        )

    def task(images, index, rng, every=full):
        how = {"segment": segment, "contrast": contrast}
        if not mixing:
            keys = example_keys(rng, index)
            masking = tokens.random_masking(keys, length, visible)
            return apart(images, masking, visible, members, **how)
        keys = example_keys(rng, index[::members])
        source = homologous.random_sources(keys, grid, cell, members, leftover)
        images = sub_batches.split(images, images.shape[0] // members)
        if every:
            source = sub_batches.merge(homologous.rotations(source, members))
            images = jnp.repeat(images, members, axis=0)  # [G K, K, H, W, C]
        return mixed(images, source, patch, attend=attend, topk=topk, **how)

    def target(images):
        patches = pixels.patchify(images, patch)
        patches = pixels.normalise(patches) if norm_pix else patches
        if full:  # every group is painted once for each of its pictures
            patches = sub_batches.split(patches, images.shape[0] // members)
            patches = sub_batches.merge(jnp.repeat(patches, members, axis=0))
        return patches

    def init(rng, batch):
        # The example may be a single image; a group of it tells the shapes.
        images = jnp.repeat(batch["views"][0][:1], members, axis=0)
        index = jnp.repeat(batch["index"][:1], members)
        pictures, inputs, *_ = task(images, index, rng)
        params, stats = network.init(rng, pictures, **inputs)
        if contrast and "token_projector" not in params:
            raise UsageError(
                "method.homocon=True needs a section model.token_projector."
            )
        return Variables(params, stats, teacher={}, memory={})

    def loss(params, state, batch, rng):
        images, index = batch["views"][0], batch["index"]
        pictures, inputs, kept, source = task(images, index, rng)
        outputs, stats = network.apply(
            params, state.stats, pictures, train=True, rng=rng, **inputs
        )
        total, metrics = 0.0, {}
        if recon:
            total = pixels.masked_mse(outputs["prediction"], target(images), kept)
            metrics["loss_recon"] = total
        if contrast:
            value = homologous_contrast(
                outputs["projected"],
                source,
                contrast.temperature,
                positives=contrast.positives,
                members=members,
                keys=jax.random.split(jax.random.fold_in(rng, 1), source.shape[0]),
            )
            total += contrast.weight * value
            metrics["loss_contrast"] = value
        found = outputs["notes"].get(NOTE)
        if found is not None:
            metrics["topk/chance"] = jnp.float32(r)
            for layer in range(topk.start, found.shape[0]):
                metrics[f"topk/layer_{layer:02}"] = found[layer]
        return total, Aux(stats, carry={}, metrics=metrics)

    def show(state, batch, rng):
        have = batch["index"].shape[0]
        rows = jnp.arange(max(members, have // members * members)) % have
        images, index = batch["views"][0][rows], batch["index"][rows]
        pictures, inputs, kept, source = task(images, index, rng, every=False)
        choose = inputs["encoder"].get("choose")
        if choose:
            inputs["encoder"]["choose"] = watch_keys(choose, source, grid, members)
        outputs, _ = network.apply(
            state.params, state.stats, pictures, train=False, **inputs
        )
        found = pixels.panels(images, outputs["prediction"], kept, patch, norm_pix)
        if not mixing:
            return found
        each = lambda x: jnp.repeat(x, members, axis=0)  # [B, H, W, C]
        found["mixture"] = each(pictures)
        tinted = 0.5 * (pictures + homologous.paint(source, patch, pictures))
        found["whose it is"] = each(tinted)
        if choose:
            seen = outputs["notes"]["seen"][-1]  # [G, K, L]
            seen = sub_batches.merge(tokens.of_pixels(seen, images.shape[1:3], patch))
            dark = images.min()
            lit = each(tinted) * seen + dark * (1 - seen)
            found["keys of its token nearest to the centre, last layer"] = lit
        return found

    def features(state, images):
        if transfer_segment == "none":
            return network.features(state.params, state.stats, images)
        ids = jnp.zeros((images.shape[0], length), jnp.int32)
        found = network.encode(state.params, state.stats, images, segments=ids)
        return found["features"]

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=features,
        show=show,
        together=members,
    )
