"""Semantic segmentation: a class for every pixel (UperNet, Xiao et al., 2018).

    maps = encoder(x), after four of its blocks
    loss = CE(decoder(neck(maps)), y) + w CE(auxiliary head(maps), y)

Trained as in mmsegmentation, and as papers on masked image modelling report it for
ADE20K: logits are resized to the labels before the loss; ignored pixels (255) have no
loss but still count in the mean over all pixels (`over`="all"; "valid" leaves them
out). The auxiliary head is used in training alone.

Departures: none known.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from mixjax.data.pipeline import mask_inside
from mixjax.dense import draw
from mixjax.errors import UsageError, check_name
from mixjax.objectives.segmentation import segmentation_cross_entropy
from mixjax.state import Aux, Method, Network, Variables

IGNORED = 255


class Segmenter(NamedTuple):
    """A network and how its losses are combined."""

    network: Network
    auxiliary: float  # weight of the auxiliary head's loss, 0 for no such head
    over: str  # "all" or "valid": the pixels that a loss is the mean of

    @property
    def inference_parts(self) -> tuple[str, ...]:
        """All parts but the auxiliary head."""
        return tuple(name for name in self.network.parts if name != "fcn_head")


def init(segmenter: Segmenter, rng, batch: dict) -> Variables:
    """Initial variables; raises UsageError unless the batch has maps of classes."""
    if "map" not in batch.get("targets", {}):
        raise UsageError(
            "method.name='segment' learns maps of classes, which data.views[0] "
            "does not provide: start the view with segment_crop, and read ade20k:PATH."
        )
    params, stats = segmenter.network.init(rng, batch["views"][0])
    return Variables(params, stats, teacher={}, memory={})


def loss(segmenter: Segmenter, params, state, batch: dict, rng):
    """(loss, Aux): cross-entropy of both heads. Labels: [B, H, W]."""
    images, labels = batch["views"][0], batch["targets"]["map"]
    outputs, stats = segmenter.network.apply(
        params, state.stats, images, train=True, rng=rng
    )
    cross_entropy = functools.partial(
        segmentation_cross_entropy, ignore=IGNORED, over=segmenter.over
    )
    value = cross_entropy(outputs["logits"], labels)
    metrics = {"main": value, "pixels": jnp.mean(labels != IGNORED)}
    if segmenter.auxiliary:
        auxiliary = cross_entropy(outputs["aux_logits"], labels)
        metrics["auxiliary"] = auxiliary
        value = value + segmenter.auxiliary * auxiliary
    return value, Aux(stats, {}, metrics)


def predict_logits(segmenter: Segmenter, state, images):
    """Images [B, H, W, C] -> logits [B, h, w, K], a quarter of the size."""
    outputs, _ = segmenter.network.run(
        state.params,
        state.stats,
        {"images": images},
        segmenter.inference_parts,
        train=False,
    )
    return outputs["logits"]


def show(segmenter: Segmenter, state, batch: dict, rng) -> dict:
    """The images, tinted by predicted and, if known, by true classes."""
    images, targets = batch["views"][0], batch.get("targets", {})
    classes = predict_logits(segmenter, state, images).argmax(axis=-1)  # [B, h, w]
    prediction = draw.classes_over(images, classes)
    if "hw" in targets:  # leave the padding beyond an image untinted
        within = mask_inside(targets["hw"], *images.shape[1:3])  # [B, H, W, 1]
        prediction = jnp.where(within, prediction, images)
    panels = {"input": images, "prediction": prediction}
    if "map" in targets:
        panels["truth"] = draw.classes_over(images, targets["map"])
    return panels


def make(network: Network, *, auxiliary: float, over: str) -> Method:
    """A segmenter on top of an encoder.

    auxiliary: the weight of the auxiliary head's loss, 0 for none. over: "all" or
    "valid", the pixels that a loss is the mean of.
    """
    check_name("method.over", over, ["all", "valid"])
    if "uper_head" not in network.parts:
        raise UsageError("method.name='segment' needs a section model.uper_head.")
    if bool(auxiliary) != ("fcn_head" in network.parts):
        raise UsageError(
            f"method.auxiliary={auxiliary} does not fit the model: set it above 0 with "
            f"a section model.fcn_head, whose loss it weighs, and to 0 without one."
        )
    segmenter = Segmenter(network, auxiliary, over)
    return Method(
        init=functools.partial(init, segmenter),
        loss=functools.partial(loss, segmenter),
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=functools.partial(show, segmenter),
        together=1,
        predict=lambda state, batch: predict_logits(
            segmenter, state, batch["views"][0]
        ),
    )
