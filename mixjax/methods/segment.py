"""Semantic segmentation: a class for every pixel (UperNet, Xiao et al., 2018).

    maps = encoder(x), after four of its blocks
    loss = CE(decoder(neck(maps)), y) + w CE(auxiliary head(maps), y)

As mmsegmentation trains it and the papers of the masked family report it on ADE20K:
logits are resized to the labels first; pixels that are not to be counted (255) give
zero but do count in the mean over all pixels (`over`="all"; "valid" leaves them out).
The auxiliary head is for training alone.

Departures: none known.
"""

import jax.numpy as jnp

from mixjax.data.pipeline import inside
from mixjax.dense import draw
from mixjax.errors import UsageError, check_name
from mixjax.objectives.segmentation import segmentation_cross_entropy
from mixjax.state import Aux, Method, Network, Variables

IGNORED = 255


def make(network: Network, *, auxiliary: float, over: str) -> Method:
    """A segmenter on top of an encoder.

    auxiliary: the weight of the auxiliary head's loss, 0 for none. over: "all" or
    "valid" pixels, what losses are means of.
    """
    check_name("method.over", over, ["all", "valid"])
    if "uper_head" not in network.parts:
        raise UsageError("method.name='segment' needs a section model.uper_head.")
    if bool(auxiliary) != ("fcn_head" in network.parts):
        raise UsageError(
            f"method.auxiliary={auxiliary} weighs the loss of model.fcn_head: both, or "
            f"neither with method.auxiliary=0."
        )
    main = tuple(name for name in network.parts if name != "fcn_head")

    def init(rng, batch):
        if "map" not in batch.get("targets", {}):
            raise UsageError(
                "method.name='segment' learns maps of classes, which data.views[0] "
                "does not give: begin it with segment_crop, and take ade20k:PATH."
            )
        params, stats = network.init(rng, batch["views"][0])
        return Variables(params, stats, teacher={}, memory={})

    def loss(params, state, batch, rng):
        images, labels = batch["views"][0], batch["targets"]["map"]
        outputs, stats = network.apply(params, state.stats, images, train=True, rng=rng)
        how = {"ignore": IGNORED, "over": over}
        value = segmentation_cross_entropy(outputs["logits"], labels, **how)
        metrics = {"main": value, "pixels": jnp.mean(labels != IGNORED)}
        if auxiliary:
            second = segmentation_cross_entropy(outputs["aux_logits"], labels, **how)
            metrics["auxiliary"] = second
            value = value + auxiliary * second
        return value, Aux(stats, {}, metrics)

    def logits(state, images):
        """[B, H, W, C] -> [B, h, w, K], a quarter of the size."""
        start = {"images": images}
        outputs, _ = network.run(state.params, state.stats, start, main, train=False)
        return outputs["logits"]

    def show(state, batch, rng):
        images = batch["views"][0]
        classes = logits(state, images).argmax(axis=-1)
        found = draw.classes_over(images, classes)
        if "hw" in batch.get("targets", {}):  # there is nothing beyond a picture
            within = inside(batch["targets"]["hw"], *images.shape[1:3])
            found = jnp.where(within, found, images)
        seen = {"input": images, "prediction": found}
        if "map" in batch.get("targets", {}):
            labels = batch["targets"]["map"]
            seen["truth"] = draw.classes_over(images, labels)
        return seen

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=show,
        together=1,
        predict=lambda state, batch: logits(state, batch["views"][0]),
    )
