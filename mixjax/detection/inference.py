"""What a detector finds in pictures: boxes, classes, scores and masks."""

import jax
import jax.numpy as jnp

from mixjax.dense import boxes as box_maths
from mixjax.dense import draw
from mixjax.dense.detections import detections, to_original
from mixjax.detection import detector
from mixjax.detection.detector import Detector

SHOWN = 0.3  # the score from which pictures show a detection


def run_stages(d: Detector, state, outputs: dict, hw):
    """(boxes [B, R, 4] before the last stage moves them, its deltas, probabilities
    [B, R, K + 1], the mean over the stages, and which are valid)."""
    variables, how = (state.params, state.stats), {"train": False}
    maps, total = detector.maps_of(outputs), 0.0
    by_logits = d.rules.test.average == "logits"
    boxes, valid = detector.propose(d, outputs, hw, test=True)
    for s in range(d.stages):
        pooled = detector.pool(d, maps, boxes, d.rules.boxes.side)
        pooled, _ = detector.last_stage(d, variables, pooled, valid, **how)
        found, _ = detector.head(d, variables, "box_head", s, pooled, valid, **how)
        scores = found["class_logits"].astype(jnp.float32)
        total = total + (scores if by_logits else jax.nn.softmax(scores))
        if s + 1 < d.stages:
            classes = found["class_logits"][..., :-1].argmax(axis=-1)
            boxes = detector.refine(d, found["box_deltas"], boxes, classes, s, hw)
    mean = total / d.stages
    probs = jax.nn.softmax(mean) if by_logits else mean
    return boxes, found["box_deltas"], probs, valid


def find(d: Detector, state, outputs: dict, hw) -> dict:
    """Detections on the canvas, [B, count, ...]."""
    test, weights = d.rules.test, d.rules.boxes.weights[-1]

    def one(boxes, deltas, probs, valid, hw):
        each = deltas.reshape(len(deltas), -1, 4)  # [R, K or 1, 4]
        moved = box_maths.decode(each, boxes[:, None], weights)
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

    return jax.vmap(one)(*run_stages(d, state, outputs, hw), hw)._asdict()


def masks_of(d: Detector, state, maps, found: dict):
    """Masks of detections: [B, count, S, S], how likely each place shows the object."""
    variables, how = (state.params, state.stats), {"train": False}
    valid, side = found["valid"], d.rules.masks.pooled or d.rules.boxes.side
    pooled = detector.pool(d, maps, found["boxes"], side)
    if not d.rules.masks.pooled:
        pooled, _ = detector.last_stage(d, variables, pooled, valid, **how)
    total = 0.0
    for s in range(d.mask_heads):
        drawn, _ = detector.head(d, variables, "mask_head", s, pooled, valid, **how)
        picked = found["classes"][..., None, None, None]
        own = jnp.take_along_axis(drawn["mask_logits"], picked, axis=-1)[..., 0]
        total = total + jax.nn.sigmoid(own.astype(jnp.float32))
    return total / d.mask_heads


def predict(d: Detector, state, batch: dict) -> dict:
    """boxes [B, n, 4] on the canvas, scores, classes, valid [B, n], overflow [B].

    Also, if the detector has any, masks [B, n, S, S]; and, where the targets have the
    size of the original, the boxes in that, as "original".
    """
    targets = batch["targets"]
    outputs, _ = detector.look(d, state.params, state.stats, batch, train=False)
    found = find(d, state, outputs, targets["hw"])
    if d.mask_heads:
        found["masks"] = masks_of(d, state, detector.maps_of(outputs), found)
    if "original" in targets:
        given = found["boxes"], targets["hw"], targets["original"]
        found["original"] = jax.vmap(to_original)(*given)
    return found


def show(d: Detector, state, batch: dict) -> dict:
    """The pictures, with what was found, and with what is there."""
    images, found = batch["views"][0], predict(d, state, batch)
    drawn = found["valid"] & (found["scores"] > SHOWN)
    what = found["boxes"], found["classes"], drawn, found.get("masks")
    seen = {"input": images, "prediction": draw.objects_over(images, *what)}
    targets = batch["targets"]
    if "boxes" in targets:
        what = targets["boxes"], targets["classes"], targets["present"]
        seen["truth"] = draw.objects_over(images, *what, targets.get("masks"))
    return seen
