"""Inference of a detector: boxes, classes, scores and masks of objects."""

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_maths
from mixjax.dense import draw
from mixjax.dense.detections import detections, to_original
from mixjax.detection import detector
from mixjax.detection.detector import Detector

SHOWN = 0.3  # drawings show detections with a higher score


def run_stages(d: Detector, state, outputs: dict, hw):
    """Runs all box heads on the proposals.

    Returns (boxes [B, R, 4] that the last stage read, its deltas, probabilities
    [B, R, K + 1] averaged over the stages, valid [B, R]). Cascade R-CNN averages the
    probabilities in detectron2, the logits in mmdetection: config.method.test.average.
    """
    variables, mode = (state.params, state.stats), {"train": False}
    maps, total = detector.maps_of(outputs), 0.0
    by_logits = d.rules.test.average == "logits"
    boxes, valid = detector.propose(d, outputs, hw, test=True)
    for s in range(d.stages):
        pooled = detector.pool(d, maps, boxes, d.rules.boxes.side)
        pooled, _ = detector.run_last_stage(d, variables, pooled, valid, **mode)
        head, _ = detector.run_head(d, variables, "box_head", s, pooled, valid, **mode)
        logits = head["class_logits"].astype(jnp.float32)  # [B, R, K + 1]
        total = total + (logits if by_logits else jax.nn.softmax(logits))
        if s + 1 < d.stages:
            # Background is the last class and moves no box.
            classes = head["class_logits"][..., :-1].argmax(axis=-1)  # [B, R]
            boxes = detector.refine(d, head["box_deltas"], boxes, classes, s, hw)
    mean = total / d.stages
    probs = jax.nn.softmax(mean) if by_logits else mean
    return boxes, head["box_deltas"], probs, valid


def find(d: Detector, state, outputs: dict, hw) -> dict:
    """The fields of dense.detections.Detections, [B, count, ...], in pixels of the
    padded images that the network reads."""
    test, weights = d.rules.test, d.rules.boxes.weights[-1]

    def select(boxes, deltas, probs, valid, hw):
        by_class = deltas.reshape(len(deltas), -1, 4)  # [R, K or 1, 4]
        moved = box_maths.decode(by_class, boxes[:, None], weights)
        return detections(
            moved.reshape(len(deltas), -1),  # [R, 4 K] or [R, 4]
            probs,
            hw,
            valid=valid,
            score_threshold=test.score,
            nms_threshold=test.nms,
            count=test.count,
            candidates=test.candidates,
        )

    return jax.vmap(select)(*run_stages(d, state, outputs, hw), hw)._asdict()


def masks_of(d: Detector, state, maps, objects: dict):
    """Mask probabilities [B, count, S, S] of detections, inside their boxes.

    objects: the fields of Detections. A cascade averages its mask heads.
    """
    variables, mode = (state.params, state.stats), {"train": False}
    valid, side = objects["valid"], d.rules.masks.pooled or d.rules.boxes.side
    pooled = detector.pool(d, maps, objects["boxes"], side)
    if not d.rules.masks.pooled:
        pooled, _ = detector.run_last_stage(d, variables, pooled, valid, **mode)
    total = 0.0
    for s in range(d.mask_heads):
        head, _ = detector.run_head(d, variables, "mask_head", s, pooled, valid, **mode)
        channel = objects["classes"][..., None, None, None]
        logits = jnp.take_along_axis(head["mask_logits"], channel, axis=-1)[..., 0]
        total = total + jax.nn.sigmoid(logits.astype(jnp.float32))
    return total / d.mask_heads


def predict(d: Detector, state, batch: dict) -> dict:
    """Detects objects: boxes [B, n, 4], scores, classes, valid [B, n], overflow [B].

    Boxes are in pixels of the padded images. Detectors with mask heads add masks
    [B, n, S, S]; where the targets hold the size of the original image, "original"
    holds the boxes in its pixels.
    """
    targets = batch["targets"]
    outputs, _ = detector.run_on_images(
        d, state.params, state.stats, batch, train=False
    )
    objects = find(d, state, outputs, targets["hw"])
    if d.mask_heads:
        objects["masks"] = masks_of(d, state, detector.maps_of(outputs), objects)
    if "original" in targets:
        objects["original"] = jax.vmap(to_original)(
            objects["boxes"], targets["hw"], targets["original"]
        )
    return objects


def show(d: Detector, state, batch: dict) -> dict:
    """The images, with the detections and, if known, with the ground truth drawn in."""
    images, objects = batch["views"][0], predict(d, state, batch)
    confident = objects["valid"] & (objects["scores"] > SHOWN)
    predicted = draw.objects_over(
        images, objects["boxes"], objects["classes"], confident, objects.get("masks")
    )
    panels = {"input": images, "prediction": predicted}
    targets = batch["targets"]
    if "boxes" in targets:
        panels["truth"] = draw.objects_over(
            images,
            targets["boxes"],
            targets["classes"],
            targets["present"],
            targets.get("masks"),
        )
    return panels
