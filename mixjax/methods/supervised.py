"""Supervised training of an encoder and a linear classifier, to measure features.

    z    = encoder(x)
    p    = classifier(z)
    loss = cross-entropy(p, y), y smoothed and mixed             fine-tuning
    loss = cross-entropy(p, y), the encoder in evaluation mode   linear probing

Fine-tuning follows MAE's code (He et al., 2022, appendix A.1; DeiT's recipe): the
learning rate falls from layer to layer (optim.layer_decay), and images are mixed
(Mixup and CutMix, mixtures/mixup_cutmix.py, or any other image mixture). Linear probing
follows MAE's (appendix A.2) and MoCo's code: the encoder runs as in evaluation, so its
batch statistics do not change, and it gets no gradient; the recipe's optimizer does not
touch it (optim.lr_rules). data.split chooses the share of labels. With several labels
per image each class is a decision of its own.

Departures: none known.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax import mixtures
from mixjax.errors import UsageError, check_name
from mixjax.mixtures import pairs
from mixjax.objectives import classification
from mixjax.sharding import sub_batches
from mixjax.state import Array, Aux, Method, Mixed, Network, Variables

LOSSES = ("softmax", "sigmoid")
# Runs older than the field `name` of a mixture record none: there was no other mixture.
FIRST_MIXTURE = {"name": "mixup_cutmix"}


class Settings(NamedTuple):
    """What the functions below need beside their arrays."""

    network: Network
    trained: bool  # whether the encoder is
    several: bool  # labels per image, each class on its own
    smoothing: float
    mix: Callable | None  # see mixtures.make_one


def make(
    network: Network,
    *,
    trunk: str,
    loss: str,
    smoothing: float,
    mixture: Mapping,
) -> Method:
    """A classifier on top of an encoder.

    trunk: "trained" or "frozen". loss: "softmax" for one label per image, or "sigmoid"
    for several, with neither smoothing nor mixture. mixture: a section with the name
    and the fields of an image mixture (mixjax/mixtures), or {} for images as they are.
    A section without a name is one of mixup_cutmix, as earlier runs recorded it.
    """
    check_name("method.trunk", trunk, ["trained", "frozen"])
    check_name("method.loss", loss, LOSSES)
    if "classifier" not in network.parts:
        raise UsageError("method.name='supervised' needs a section model.classifier.")
    if not 0 <= smoothing < 1:
        raise UsageError(f"method.smoothing={smoothing} must lie in 0 .. 1.")
    several = loss == "sigmoid"
    if several and (mixture or smoothing):
        raise UsageError(
            "method.loss='sigmoid' takes images and labels as they are: set "
            "method.smoothing=0 and method.mixture={}."
        )
    section = {**FIRST_MIXTURE, **mixture} if mixture else {}
    mix = mixtures.make_one("method.mixture", section) if section else None
    settings = Settings(network, trunk == "trained", several, smoothing, mix)

    def init(rng, batch):
        params, stats = network.init(rng, batch["views"][0])
        return Variables(params, stats, teacher={}, memory={})

    return Method(
        init=init,
        loss=lambda *args: total(settings, *args),
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=lambda state, batch, rng: show(section, batch, rng),
        together=mixtures.together(section) if section else 1,
    )


def total(settings: Settings, params, state, batch, rng) -> tuple[Array, Aux]:
    """The loss of a batch, and its metrics."""
    keys = jax.random.split(rng)
    images, labels, mixed = batch["views"][0], batch["label"], None
    if settings.mix is not None:
        # Of a mixture that makes several images of each (erase), the first.
        mixed = settings.mix(keys[0], images, batch["index"])[0]
        images = mixed.images
    logits, stats = classify(settings, params, state.stats, images, keys[1])
    metrics = {} if mixed is None else {"lam": mixed.lam.mean()}
    if settings.several:
        each = classification.binary_cross_entropy(logits, labels)  # [B]
        return each.mean(), Aux(stats, {}, metrics)
    # A mixed image counts as a hit if the label of the image itself comes out.
    metrics["top1"] = 100 * classification.hits(logits, labels).mean()
    target = soft(labels, logits.shape[-1], settings.smoothing)  # [B, classes]
    if mixed is not None:
        target = mix_targets(target, mixed)
    each = classification.soft_cross_entropy(logits, target)  # [B]
    return each.mean(), Aux(stats, {}, metrics)


def classify(settings: Settings, params, stats, images, rng) -> tuple[Array, dict]:
    """Logits [B, classes] in training, and the new batch statistics."""
    network = settings.network
    if settings.trained:
        outputs, stats = network.apply(params, stats, images, train=True, rng=rng)
        return outputs["logits"], stats
    outputs, _ = network.run(
        params, stats, {"images": images}, ("encoder",), train=False
    )
    features = jax.lax.stop_gradient({"features": outputs["features"]})
    heads = [name for name in network.parts if name != "encoder"]
    outputs, stats = network.run(params, stats, features, heads, train=True, rng=rng)
    return outputs["logits"], stats


def soft(labels: Array, classes: int, smoothing: float) -> Array:
    """Labels [B] -> [B, classes]: smoothing / classes everywhere, the rest on top."""
    hot = jax.nn.one_hot(labels, classes)
    return hot * (1 - smoothing) + smoothing / classes


def mix_targets(target: Array, mixed: Mixed) -> Array:
    """lam y + (1 - lam) y': targets [B, classes], weighted as their images are.

    Without a partner (erasing) all that is left to see is the image itself, and the
    target stays as it is.
    """
    if mixed.partner is None:
        return target
    grouped = sub_batches.split(target, len(mixed.partner))  # [G, n, classes]
    other = sub_batches.merge(pairs.take(grouped, mixed.partner))
    return mixed.lam[:, None] * target + (1 - mixed.lam[:, None]) * other


def show(section: Mapping, batch, rng) -> dict[str, Array]:
    """The images of a few examples and, if they are mixed, mixtures and masks."""
    images = batch["views"][0]
    panels = {"input": images}
    if section and len(images) > 1:
        few = mixtures.for_few(section, len(images))
        mixed = mixtures.make_one("method.mixture", few)(rng, images, batch["index"])[0]
        # The masks of groups [G, H, W, 1], one for each of their images.
        mask = jnp.repeat(mixed.mask, len(images) // len(mixed.mask), axis=0)
        panels |= {
            "mixture": mixed.images,
            "mask": jnp.broadcast_to(mask, images.shape),
        }
    return panels
