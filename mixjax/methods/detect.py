"""Detection and instance segmentation: Faster, Mask and Cascade R-CNN.

    proposals = NMS(decode(anchors, RPN(maps)))
    regions   = sample(proposals and ground-truth boxes)
    loss = CE + L1 of the sampled anchors
         + sum over stages: CE + L1 (or GIoU) of the regions
         + BCE of the masks of the positive regions

Ren et al., 2015; He et al., 2017; Cai and Vasconcelos, 2018, as implemented in
detectron2, and as in mmdetection for MixedAE's recipe. The network determines the
system: a ViT with a simple feature pyramid (ViTDet, Li et al., 2022), a ViT with neck
and FPN, or a ResNet whose last stage runs on every region (C4). All shapes are static:
the numbers of objects, proposals and regions are fixed, and boolean arrays tell which
of them are valid.

Departures: RoIAlign takes 2 x 2 samples per bin whatever the size of the region, and
mask targets are resampled from crops of the objects' masks, where detectron2 adapts the
number of samples and rasterises polygons; means over positives are taken over the
global batch, where detectron2 takes them on each GPU.
"""

import functools
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
    """Raises UsageError unless the views provide the targets to be learned."""
    for name in ("boxes", "masks") if d.mask_heads else ("boxes",):
        if name not in batch.get("targets", {}):
            raise UsageError(
                f"method.name='detect' learns {name}, which data.views[0] does not "
                f"provide: start the view with large_jitter or short_side, with "
                f"mask_side=112 for masks; a recipe's masks=0 learns boxes alone."
            )


def init(d: Detector, rng, batch: dict) -> Variables:
    """Initial variables; raises UsageError if data, network and anchors disagree."""
    check_targets(d, batch)
    params, stats = detector.init(d, rng, batch["views"][0])
    detector.check_anchors(d, params, stats, batch)
    return Variables(params, stats, teacher={}, memory={})


def scale_gradient(x, factor: float):
    """x itself, with its gradient multiplied by `factor`."""
    return factor * x + jax.lax.stop_gradient((1 - factor) * x)


def anchor_losses(d: Detector, outputs: dict, batch: dict, rng) -> dict:
    """The two losses of the region proposal network."""
    rule, targets = d.rules.rpn, batch["targets"]
    # [N, 4], the anchors of all maps
    anchors = jnp.concatenate(detector.anchors_of(d, detector.maps_of(outputs)))

    def assign(key, targets):
        return anchor_targets(key, anchors, targets["hw"], targets, rule)

    # A key per example, so that what an image samples does not depend on the batch.
    keys = example_keys(rng, batch["index"])
    labels, truth = jax.vmap(assign)(keys, targets)  # [B, N], [B, N, 4]
    classes, boxes = losses.rpn_losses(
        jnp.concatenate(outputs["rpn_logits"], axis=1),
        jnp.concatenate(outputs["rpn_deltas"], axis=1),
        labels,
        box_maths.encode(truth, anchors[None], UNIT),
        normaliser=rule.samples * len(labels),
        beta=rule.beta,
    )
    return {"rpn": classes, "rpn_boxes": boxes}


def choose_regions(
    d: Detector, stage: int, boxes, valid, from_truth, batch: dict, rng
) -> Regions:
    """The regions that a stage trains on, with leading axes [B, S].

    boxes: [B, R, 4]; valid: [B, R] bool; from_truth: [B, R] bool, ground-truth boxes
    that an earlier stage appended to the proposals.
    """
    threshold = d.rules.boxes.thresholds[stage]
    if stage and not d.rules.boxes.resample:
        label = lambda *region: labelled(*region, threshold)
        return jax.vmap(label)(boxes, valid, batch["targets"], from_truth)
    keys = example_keys(rng, batch["index"])
    draw = lambda *region: sampled(*region, d.rules.boxes, threshold)
    # `sampled` appends the objects' boxes anew; the earlier copies would be duplicates.
    return jax.vmap(draw)(keys, boxes, valid & ~from_truth, batch["targets"])


def region_mask_loss(d: Detector, logits, regions: Regions, targets: dict):
    """The mask loss of the first P regions; logits: [B, P, S, S, K]."""
    first = jax.tree.map(lambda x: x[:, : logits.shape[1]], regions)
    resample = lambda *region: mask_targets(*region, d.rules.masks.side)
    truth = jax.vmap(resample)(
        targets["masks"], targets["boxes"], first.match, first.boxes
    )  # [B, P, S, S]
    return losses.mask_loss(logits, truth, first.classes, first.positive)


def stage_losses(d: Detector, outputs: dict, regions: Regions, s: int, targets) -> dict:
    """The weighted losses of stage s; their names end in _1, _2, .. in a cascade."""
    rule = d.rules.boxes
    class_loss, box_loss = losses.box_losses(
        outputs["class_logits"],
        outputs["box_deltas"],
        classes=regions.classes,
        valid=regions.valid,
        positive=regions.positive,
        proposals=regions.boxes,
        targets=regions.truth,
        weights=rule.weights[s],
        kind=rule.loss,
        beta=0.0,  # plain L1
    )
    terms = {"classes": class_loss, "boxes": rule.loss_weight * box_loss}
    if "mask_logits" in outputs:
        terms["masks"] = region_mask_loss(d, outputs["mask_logits"], regions, targets)
    suffix = f"_{s + 1}" if d.stages > 1 else ""
    return {f"{k}{suffix}": rule.loss_weights[s] * v for k, v in terms.items()}


def run_stage(d: Detector, params, stats, maps, regions: Regions, s: int, mode: dict):
    """Runs the heads of stage s on its regions: (outputs, stats).

    mode: train and rng, as Network.run takes them.
    """
    valid = regions.valid
    pooled = detector.pool(d, maps, regions.boxes, d.rules.boxes.side)
    if d.rules.boxes.share_gradient:
        # The stages of a cascade share the maps: together they send one gradient.
        pooled = scale_gradient(pooled, 1 / d.stages)
    variables = params, stats
    pooled, stats = detector.run_last_stage(d, variables, pooled, valid, **mode)
    # Statistics pass from part to part: each part updates its own entries.
    variables = params, stats
    outputs, stats = detector.run_head(
        d, variables, "box_head", s, pooled, valid, **mode
    )
    if s >= d.mask_heads:
        return outputs, stats
    variables = params, stats
    masks, stats = run_mask_head(d, variables, maps, pooled, regions, s, mode)
    return outputs | masks, stats


def run_mask_head(
    d: Detector, variables, maps, pooled, regions: Regions, s: int, mode: dict
):
    """Runs the mask head of stage s on the regions that may be positive.

    variables: (params, stats); pooled: [B, S, P, P, D], what the box head read. Returns
    (outputs, stats).
    """
    # Positive regions come first, and there are at most this many.
    count = int(d.rules.boxes.samples * d.rules.boxes.fraction)
    if d.rules.masks.pooled:
        boxes = regions.boxes[:, :count]
        mask_inputs = detector.pool(d, maps, boxes, d.rules.masks.pooled)
    else:  # C4: both heads read the output of the last stage
        mask_inputs = pooled[:, :count]
    valid = regions.valid[:, :count]
    return detector.run_head(d, variables, "mask_head", s, mask_inputs, valid, **mode)


def next_boxes(d: Detector, outputs: dict, regions: Regions, s: int, hw):
    """(boxes, valid, from_truth) that the next stage starts from."""
    # Without the background, which is the last class.
    predicted = outputs["class_logits"][..., :-1].argmax(axis=-1)  # [B, S]
    classes = jnp.where(regions.positive, regions.classes, predicted)
    boxes = detector.refine(d, outputs["box_deltas"], regions.boxes, classes, s, hw)
    valid = regions.valid & (box_maths.area(boxes) > 0)
    return boxes, valid, regions.from_truth


def loss(d: Detector, params, state, batch: dict, rng):
    """(sum of all losses, Aux): Method.loss of a detector."""
    targets, keys = batch["targets"], jax.random.split(rng, d.stages + 2)
    mode = {"train": True, "rng": keys[0]}
    outputs, stats = detector.run_on_images(d, params, state.stats, batch, **mode)
    maps, hw = detector.maps_of(outputs), targets["hw"]
    terms = anchor_losses(d, outputs, batch, keys[1])
    boxes, valid = detector.propose(d, outputs, hw, test=False)
    from_truth = jnp.zeros(valid.shape, bool)
    for s in range(d.stages):
        regions = choose_regions(d, s, boxes, valid, from_truth, batch, keys[2 + s])
        outputs, stats = run_stage(d, params, stats, maps, regions, s, mode)
        terms |= stage_losses(d, outputs, regions, s, targets)
        boxes, valid, from_truth = next_boxes(d, outputs, regions, s, hw)
    counts = {
        "objects": targets["present"].sum(axis=1).mean(),
        "positives": regions.positive.sum(axis=1).mean(),  # of the last stage
        "dropped": targets["dropped"].sum(),
    }
    return sum(terms.values()), Aux(stats, {}, terms | counts)


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
    """A detector on top of an encoder; detection/config.py describes its sections.

    padding: "seen" if the encoder sees the area beyond an image as zeros, or "left_out"
    if its batch statistics leave that area out. masks: {} to learn boxes alone.
    """
    rules = config.read(anchors, rpn, boxes, masks, test)
    d = detector.check(Detector(network, rules, padding))
    return Method(
        init=functools.partial(init, d),
        loss=functools.partial(loss, d),
        update=lambda state, carry: state,
        features=lambda state, x: network.features(state.params, state.stats, x),
        show=lambda state, batch, rng: inference.show(d, state, batch),
        together=1,
        predict=functools.partial(inference.predict, d),
    )
