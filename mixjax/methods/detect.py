"""Detection and instance segmentation: Faster, Mask and Cascade R-CNN.

    proposals = NMS(decode(anchors, RPN(maps)))
    regions   = sample(proposals and the objects' own boxes)
    loss = CE + L1 of the anchors sampled
         + sum over stages: CE + L1 (or GIoU) of the regions
         + BCE of the masks of the positive ones

Ren et al., 2015; He et al., 2017; Cai and Vasconcelos, 2018, in detectron2's form, and
in mmdetection's for MixedAE's recipe. The network says which system it is: a ViT with a
simple pyramid (ViTDet, Li et al., 2022), a ViT with neck and FPN, or a ResNet whose
last stage runs on every region (C4). Shapes never change: objects, proposals and
regions have fixed numbers and say which of them are valid.

Departures: RoIAlign takes 2 x 2 samples to a bin whatever the region's size, and masks
to learn are resampled from crops of the objects' masks, where detectron2 counts samples
by size and rasterises polygons; means over positives go over the global batch, where
detectron2 takes them on each GPU.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_maths
from mixjax.dense import losses
from mixjax.dense.masks import mask_targets
from mixjax.detection import config, detector, inference
from mixjax.detection.detector import Detector
from mixjax.detection.labels import UNIT, Regions, anchor_targets, labelled, sampled
from mixjax.errors import UsageError
from mixjax.state import Aux, Method, Network, Variables, example_keys


def check_targets(d: Detector, batch: dict) -> None:
    """UsageError unless the views give what is to be learned."""
    for name in ("boxes", "masks") if d.mask_heads else ("boxes",):
        if name not in batch.get("targets", {}):
            raise UsageError(
                f"method.name='detect' learns {name}, which data.views[0] does not "
                f"give: begin it with large_jitter or short_side, with mask_side=112 "
                f"for masks; a recipe's masks=0 learns boxes alone."
            )


def scale_gradient(x, share: float):
    """x, whose gradient is `share` times as large."""
    return share * x + jax.lax.stop_gradient((1 - share) * x)


def learn_anchors(d: Detector, outputs: dict, batch: dict, rng) -> dict:
    """The two losses of the region proposal network."""
    rule, targets = d.rules.rpn, batch["targets"]
    anchors = jnp.concatenate(detector.anchors_of(d, detector.maps_of(outputs)))

    def one(key, targets):
        return anchor_targets(key, anchors, targets["hw"], targets, rule)

    labels, truth = jax.vmap(one)(example_keys(rng, batch["index"]), targets)
    classes, boxes = losses.rpn_losses(
        jnp.concatenate(outputs["rpn_logits"], axis=1),
        jnp.concatenate(outputs["rpn_deltas"], axis=1),
        labels,
        box_maths.encode(truth, anchors[None], UNIT),
        normaliser=rule.samples * len(labels),
        beta=rule.beta,
    )
    return {"rpn": classes, "rpn_boxes": boxes}


def choose(d: Detector, stage: int, boxes, valid, own, batch: dict, rng) -> Regions:
    """The regions of a stage, all [B, S, ...]; own: boxes that are objects' own."""
    threshold = d.rules.boxes.thresholds[stage]
    if stage and not d.rules.boxes.resample:
        one = lambda *a: labelled(*a, threshold)
        return jax.vmap(one)(boxes, valid, batch["targets"], own)
    keys = example_keys(rng, batch["index"])
    one = lambda *a: sampled(*a, d.rules.boxes, threshold)
    return jax.vmap(one)(keys, boxes, valid & ~own, batch["targets"])


def learn_masks(d: Detector, logits, regions: Regions, targets: dict):
    """The loss of masks [B, P, S, S, K] of the first P regions."""
    first = jax.tree.map(lambda x: x[:, : logits.shape[1]], regions)
    one = lambda *a: mask_targets(*a, d.rules.masks.side)
    given = targets["masks"], targets["boxes"], first.match, first.boxes
    wanted = jax.vmap(one)(*given)  # [B, P, S, S]
    return losses.mask_loss(logits, wanted, first.classes, first.positive)


def learn_stage(d: Detector, outputs: dict, regions: Regions, s: int, targets) -> dict:
    """The losses of a stage, weighed."""
    rule = d.rules.boxes
    ce, move = losses.box_losses(
        outputs["class_logits"],
        outputs["box_deltas"],
        classes=regions.classes,
        valid=regions.valid,
        positive=regions.positive,
        proposals=regions.boxes,
        targets=regions.truth,
        weights=rule.weights[s],
        kind=rule.loss,
        beta=0.0,
    )
    found = {"classes": ce, "boxes": rule.loss_weight * move}
    if "mask_logits" in outputs:
        found["masks"] = learn_masks(d, outputs["mask_logits"], regions, targets)
    tail = f"_{s + 1}" if d.stages > 1 else ""
    return {f"{k}{tail}": rule.loss_weights[s] * v for k, v in found.items()}


def run_stage(d: Detector, params, stats, maps, regions: Regions, s: int, how: dict):
    """The heads of a stage on its regions: (outputs, stats)."""
    rule, masks = d.rules.boxes, d.rules.masks
    pooled = detector.pool(d, maps, regions.boxes, rule.side)
    if rule.share_gradient:
        pooled = scale_gradient(pooled, 1 / d.stages)
    given = pooled, regions.valid
    pooled, stats = detector.last_stage(d, (params, stats), *given, **how)
    given = pooled, regions.valid
    found, stats = detector.head(d, (params, stats), "box_head", s, *given, **how)
    if s >= d.mask_heads:
        return found, stats
    most = int(rule.samples * rule.fraction)  # positives come first
    few = pooled[:, :most]
    if masks.pooled:
        few = detector.pool(d, maps, regions.boxes[:, :most], masks.pooled)
    given = few, regions.valid[:, :most]
    drawn, stats = detector.head(d, (params, stats), "mask_head", s, *given, **how)
    return found | drawn, stats


def next_boxes(d: Detector, outputs: dict, regions: Regions, s: int, hw):
    """(boxes, valid, own) that the next stage begins with."""
    guess = outputs["class_logits"][..., :-1].argmax(axis=-1)
    classes = jnp.where(regions.positive, regions.classes, guess)
    given = outputs["box_deltas"], regions.boxes, classes
    boxes = detector.refine(d, *given, s, hw)
    return boxes, regions.valid & (box_maths.area(boxes) > 0), regions.own


def make(
    network: Network,
    *,
    padding: str,
    anchors: Mapping,
    rpn: Mapping,
    boxes: Mapping,
    masks: Mapping,
    test: Mapping,
) -> Method:
    """A detector on top of an encoder; its sections are those of detection/config.py.

    padding: "seen" by the encoder as zeros beyond a picture, or "left_out" of its
    batch statistics. masks: {} for boxes alone.
    """
    read = config.read(anchors, rpn, boxes, masks, test)
    d = detector.check(Detector(network, read, padding))

    def init(rng, batch):
        check_targets(d, batch)
        params, stats = detector.init(d, rng, batch["views"][0])
        detector.check_anchors(d, params, stats, batch)
        return Variables(params, stats, teacher={}, memory={})

    def loss(params, state, batch, rng):
        targets, keys = batch["targets"], jax.random.split(rng, d.stages + 2)
        how = {"train": True, "rng": keys[0]}
        outputs, stats = detector.look(d, params, state.stats, batch, **how)
        maps, hw = detector.maps_of(outputs), targets["hw"]
        terms = learn_anchors(d, outputs, batch, keys[1])
        where, valid = detector.propose(d, outputs, hw, test=False)
        own = jnp.zeros(valid.shape, bool)
        for s in range(d.stages):
            regions = choose(d, s, where, valid, own, batch, keys[2 + s])
            found, stats = run_stage(d, params, stats, maps, regions, s, how)
            terms |= learn_stage(d, found, regions, s, targets)
            where, valid, own = next_boxes(d, found, regions, s, hw)
        seen = {"objects": targets["present"].sum(axis=1).mean()}
        seen["positives"] = regions.positive.sum(axis=1).mean()
        seen["dropped"] = targets["dropped"].sum()
        return sum(terms.values()), Aux(stats, {}, terms | seen)

    return Method(
        init=init,
        loss=loss,
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=lambda state, batch, rng: inference.show(d, state, batch),
        together=1,
        predict=lambda state, batch: inference.predict(d, state, batch),
    )
