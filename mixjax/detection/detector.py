"""A network that looks at pictures and then at regions of them.

What training and test of a detector have in common: each function takes a Detector,
and those that run parts of the network take and return parameters and statistics. A
batch of B pictures with R regions each goes through the parts as B R regions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.dense import boxes as box_maths
from mixjax.dense.anchors import level_anchors
from mixjax.dense.proposals import proposals
from mixjax.dense.roi_align import levels, roi_align
from mixjax.detection.config import Rules
from mixjax.errors import UsageError, check_name
from mixjax.state import Network

Array = jax.Array
ON_REGIONS = ("res5", "box_head", "mask_head")  # parts that do not run on pictures
PADDINGS = ("seen", "left_out")


class Detector(NamedTuple):
    """A network and how to use it."""

    network: Network
    rules: Rules
    padding: str  # "seen" as zeros beyond a picture, or "left_out" of batch statistics

    @property
    def stages(self) -> int:
        return len(self.rules.boxes.thresholds)

    @property
    def mask_heads(self) -> int:
        """How many stages have one."""
        if not self.rules.masks:
            return 0
        return self.stages if self.rules.masks.every_stage else 1


def name_of(part: str, stage: int) -> str:
    """The part of a stage, counted from 0: box_head, box_head_2, ..."""
    return f"{part}_{stage + 1}" if stage else part


def check(d: Detector) -> Detector:
    """The detector; UsageError unless the network has the parts its rules speak of."""
    check_name("method.padding", d.padding, PADDINGS)
    wanted = ["rpn_head", *(name_of("box_head", s) for s in range(d.stages))]
    wanted += [name_of("mask_head", s) for s in range(d.mask_heads)]
    wanted += ["res5"] if d.rules.masks and not d.rules.masks.pooled else []
    for name in wanted:
        if name not in d.network.parts:
            raise UsageError(f"method.name='detect' needs a section model.{name}.")
    return d


def flat(x: Array) -> Array:
    """[B, R, ...] -> [B R, ...]."""
    return x.reshape(-1, *x.shape[2:])


def apart(x: Array, batch: int) -> Array:
    """[B R, ...] -> [B, R, ...], the inverse of flat."""
    return x.reshape(batch, -1, *x.shape[1:])


def init(d: Detector, rng, images: Array):
    """(params, stats); parts that run on regions begin with a single one."""

    def one(side):
        def regions(outputs):
            width = maps_of(outputs)[0].shape[-1]
            blank = jnp.zeros((1, side, side, width))
            return {"regions": outputs.get("regions", blank)}  # what res5 made of them

        return regions

    boxes, masks = d.rules.boxes, d.rules.masks
    inputs = {name_of("box_head", s): one(boxes.side) for s in range(d.stages)}
    side = masks.pooled if masks and masks.pooled else boxes.side
    inputs |= {name_of("mask_head", s): one(side) for s in range(d.mask_heads)}
    every = lambda outputs: one(boxes.side)(outputs) | {"valid": jnp.ones(1, bool)}
    return d.network.init(rng, images, res5=every, **inputs)


def look(d: Detector, params, stats, batch: dict, **how):
    """Everything that runs on whole pictures: (outputs, stats)."""
    parts = tuple(p for p in d.network.parts if not p.startswith(ON_REGIONS))
    if d.padding == "left_out":
        how |= {"encoder": {"hw": batch["targets"]["hw"]}}
    start = {"images": batch["views"][0]}
    return d.network.run(params, stats, start, parts, **how)


def maps_of(outputs: dict) -> tuple[Array, ...]:
    """The maps that the proposal network reads, fine to coarse: [B, h, w, D] each."""
    return outputs["pyramid"] if "pyramid" in outputs else (outputs["map"],)


def anchors_of(d: Detector, maps: tuple[Array, ...]) -> list[np.ndarray]:
    """The anchors of every map, [h w A, 4]."""
    sizes = [m.shape[1:3] for m in maps]
    rule = d.rules.anchors
    return level_anchors(sizes, rule.strides, rule.sizes, rule.ratios, rule.offset)


def check_anchors(d: Detector, params, stats, batch: dict) -> None:
    """UsageError unless the proposal network has an output for every anchor."""
    seen = lambda *given: look(d, *given, train=False)[0]
    outputs = jax.eval_shape(seen, params, stats, batch)
    maps = maps_of(outputs)
    pairs = zip(maps, outputs["rpn_logits"], anchors_of(d, maps), strict=True)
    for one, logits, anchors in pairs:
        places = one.shape[1] * one.shape[2]
        if logits.shape[1] != len(anchors):
            raise UsageError(
                f"model.rpn_head.anchors={logits.shape[1] // places}, but the sizes "
                f"and ratios of method.anchors make {len(anchors) // places}; set it "
                f"to that."
            )


def propose(d: Detector, outputs: dict, hw: Array, *, test: bool):
    """Proposals [B, n, 4] and which are valid [B, n]; no gradient goes through."""
    anchors, rule = anchors_of(d, maps_of(outputs)), d.rules.rpn
    how = {"before": rule.before[test], "after": rule.after[test]}
    how["threshold"] = rule.threshold
    one = lambda logits, deltas, hw: proposals(logits, deltas, anchors, hw, **how)
    boxes, _, valid = jax.vmap(one)(outputs["rpn_logits"], outputs["rpn_deltas"], hw)
    return boxes, valid


def pool(d: Detector, maps: tuple[Array, ...], boxes: Array, side: int) -> Array:
    """The maps under boxes [B, R, 4]: [B, R, side, side, D]."""
    strides = d.rules.boxes.strides
    level = jnp.zeros(boxes.shape[:2], jnp.int32)
    if len(strides) > 1:
        lowest = int(np.log2(strides[0]))
        highest = lowest + len(strides) - 1
        level = levels(boxes, lowest=lowest, highest=highest) - lowest
    maps = maps[: len(strides)]
    return roi_align(maps, strides, boxes, level, side=side, samples=2)


def head(d: Detector, variables, part: str, stage: int, regions, valid, **how):
    """A stage's part on regions [B, R, P, P, D]: (outputs [B, R, ...], stats).

    variables: (params, stats). valid: [B, R] bool, which regions there are.
    """
    name, (params, stats) = name_of(part, stage), variables
    how |= {name: {"regions": flat(regions), "valid": flat(valid)}}
    outputs, stats = d.network.run(params, stats, {}, (name,), **how)
    return {k: apart(x, len(regions)) for k, x in outputs.items()}, stats


def last_stage(d: Detector, variables, regions: Array, valid: Array, **how):
    """The ResNet's last stage on regions, where it is apart: (regions, stats).

    variables: (params, stats). valid: [B, R] bool, which regions there are.
    """
    params, stats = variables
    if "res5" not in d.network.parts:
        return regions, stats
    how |= {"res5": {"regions": flat(regions), "valid": flat(valid)}}
    outputs, stats = d.network.run(params, stats, {}, ("res5",), **how)
    return apart(outputs["regions"], len(regions)), stats


def refine(d: Detector, deltas: Array, boxes: Array, classes: Array, stage: int, hw):
    """Boxes [B, R, 4] moved by the deltas of their class, within the pictures.

    deltas: [B, R, 4 K], or [B, R, 4] whatever the class; classes: [B, R].
    """
    if deltas.shape[-1] > 4:
        each = deltas.reshape(*deltas.shape[:-1], -1, 4)  # [B, R, K, 4]
        picked = jnp.take_along_axis(each, classes[..., None, None], axis=2)
        deltas = picked[:, :, 0]  # [B, R, 4]
    moved = box_maths.decode(deltas, boxes, d.rules.boxes.weights[stage])
    return jax.lax.stop_gradient(jax.vmap(box_maths.clip)(moved, hw))
