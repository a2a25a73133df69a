"""The steps that training and testing of a detector share.

Every function takes a Detector; those that run parts of the network also take
parameters and statistics and return new statistics. Parts that work on regions receive
the R regions of each of B images as one batch of B R regions.
"""

import functools
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
ON_REGIONS = ("res5", "box_head", "mask_head")  # prefixes of parts that read regions
PADDINGS = ("seen", "left_out")


class Detector(NamedTuple):
    """A network and the rules by which it detects."""

    network: Network
    rules: Rules
    padding: str  # beyond an image: "seen" as zeros, or "left_out" of batch statistics

    @property
    def stages(self) -> int:
        """The number of box heads: 1, or more in a cascade."""
        return len(self.rules.boxes.thresholds)

    @property
    def mask_heads(self) -> int:
        """The number of stages with a mask head."""
        if not self.rules.masks:
            return 0
        return self.stages if self.rules.masks.every_stage else 1


def part_name(part: str, stage: int) -> str:
    """The name of a stage's part; stages 0, 1, ..: box_head, box_head_2, ..."""
    return f"{part}_{stage + 1}" if stage else part


def check(d: Detector) -> Detector:
    """Returns the detector; UsageError unless its network has the parts it needs."""
    check_name("method.padding", d.padding, PADDINGS)
    needed = ["rpn_head", *(part_name("box_head", s) for s in range(d.stages))]
    needed += [part_name("mask_head", s) for s in range(d.mask_heads)]
    needed += ["res5"] if d.rules.masks and not d.rules.masks.pooled else []
    for name in needed:
        if name not in d.network.parts:
            raise UsageError(f"method.name='detect' needs a section model.{name}.")
    return d


def merge_batch(x: Array) -> Array:
    """[B, R, ...] -> [B R, ...]."""
    return x.reshape(-1, *x.shape[2:])


def split_batch(x: Array, batch: int) -> Array:
    """[B R, ...] -> [B, R, ...], the inverse of merge_batch."""
    return x.reshape(batch, -1, *x.shape[1:])


def init(d: Detector, rng, images: Array):
    """(params, stats); parts that read regions are initialised on a single one."""
    boxes, masks = d.rules.boxes, d.rules.masks
    box_input = functools.partial(blank_region, boxes.side)
    mask_side = masks.pooled if masks and masks.pooled else boxes.side
    mask_input = functools.partial(blank_region, mask_side)
    inputs = {part_name("box_head", s): box_input for s in range(d.stages)}
    inputs |= {part_name("mask_head", s): mask_input for s in range(d.mask_heads)}
    # Unlike the heads, res5 always needs `valid`: it normalises over the regions.
    res5 = lambda outputs: box_input(outputs) | {"valid": jnp.ones(1, bool)}
    return d.network.init(rng, images, res5=res5, **inputs)


def blank_region(side: int, outputs: dict) -> dict:
    """The input of a part that reads regions: res5's output, or zeros [1, P, P, D]."""
    width = maps_of(outputs)[0].shape[-1]
    blank = jnp.zeros((1, side, side, width))
    return {"regions": outputs.get("regions", blank)}


def run_on_images(d: Detector, params, stats, batch: dict, **mode):
    """Runs all parts that read whole images: (outputs, stats).

    mode, here and below: train and rng, as Network.run takes them.
    """
    parts = tuple(p for p in d.network.parts if not p.startswith(ON_REGIONS))
    if d.padding == "left_out":
        mode |= {"encoder": {"hw": batch["targets"]["hw"]}}
    start = {"images": batch["views"][0]}
    return d.network.run(params, stats, start, parts, **mode)


def maps_of(outputs: dict) -> tuple[Array, ...]:
    """The maps that the proposal network reads, fine to coarse: [B, h, w, D] each.

    A detector without a pyramid (C4) has one map.
    """
    return outputs["pyramid"] if "pyramid" in outputs else (outputs["map"],)


def anchors_of(d: Detector, maps: tuple[Array, ...]) -> list[np.ndarray]:
    """The anchors of each map, [h w A, 4]."""
    sizes = [m.shape[1:3] for m in maps]
    rule = d.rules.anchors
    return level_anchors(sizes, rule.strides, rule.sizes, rule.ratios, rule.offset)


def check_anchors(d: Detector, params, stats, batch: dict) -> None:
    """Raises UsageError unless the proposal network has an output for every anchor."""
    run = lambda *arrays: run_on_images(d, *arrays, train=False)[0]
    outputs = jax.eval_shape(run, params, stats, batch)  # shapes alone: no computation
    maps = maps_of(outputs)
    levels = zip(maps, outputs["rpn_logits"], anchors_of(d, maps), strict=True)
    for feature_map, logits, anchors in levels:
        places = feature_map.shape[1] * feature_map.shape[2]
        if logits.shape[1] != len(anchors):
            raise UsageError(
                f"model.rpn_head.anchors={logits.shape[1] // places}, but the sizes "
                f"and ratios of method.anchors make {len(anchors) // places}; set it "
                f"to {len(anchors) // places}."
            )


def propose(d: Detector, outputs: dict, hw: Array, *, test: bool):
    """Proposals [B, n, 4] and a bool [B, n], which are valid; without gradient.

    hw: [B, 2], the sizes of the images. test: whether to take the rules for testing.
    """
    anchors, rule = anchors_of(d, maps_of(outputs)), d.rules.rpn
    limits = {"before": rule.before[test], "after": rule.after[test]}
    limits["threshold"] = rule.threshold
    select = lambda logits, deltas, hw: proposals(logits, deltas, anchors, hw, **limits)
    # Image by image, so that no scores move between devices.
    boxes, _, valid = jax.vmap(select)(outputs["rpn_logits"], outputs["rpn_deltas"], hw)
    return boxes, valid


def pool(d: Detector, maps: tuple[Array, ...], boxes: Array, side: int) -> Array:
    """Pools the maps inside boxes [B, R, 4]: [B, R, side, side, D].

    Each box reads the map that suits its size.
    """
    strides = d.rules.boxes.strides
    level = jnp.zeros(boxes.shape[:2], jnp.int32)  # [B, R], a place in `maps`
    if len(strides) > 1:
        lowest = int(np.log2(strides[0]))
        highest = lowest + len(strides) - 1
        level = levels(boxes, lowest=lowest, highest=highest) - lowest
    maps = maps[: len(strides)]  # the coarsest map (P6) serves the proposals alone
    return roi_align(maps, strides, boxes, level, side=side, samples=2)


def run_head(d: Detector, variables, part: str, stage: int, regions, valid, **mode):
    """Runs a stage's head on regions [B, R, P, P, D]: (outputs [B, R, ...], stats).

    variables: (params, stats). valid: [B, R] bool, which regions hold anything.
    """
    name, (params, stats) = part_name(part, stage), variables
    mode |= {name: {"regions": merge_batch(regions), "valid": merge_batch(valid)}}
    outputs, stats = d.network.run(params, stats, {}, (name,), **mode)
    return {k: split_batch(x, len(regions)) for k, x in outputs.items()}, stats


def run_last_stage(d: Detector, variables, regions: Array, valid: Array, **mode):
    """Runs the ResNet's last stage on regions: (regions, stats).

    Only C4 detectors have it as a part of its own, res5; others return `regions` as
    they are. variables: (params, stats). valid: [B, R] bool, which regions hold
    anything.
    """
    params, stats = variables
    if "res5" not in d.network.parts:
        return regions, stats
    mode |= {"res5": {"regions": merge_batch(regions), "valid": merge_batch(valid)}}
    outputs, stats = d.network.run(params, stats, {}, ("res5",), **mode)
    return split_batch(outputs["regions"], len(regions)), stats


def refine(d: Detector, deltas: Array, boxes: Array, classes: Array, stage: int, hw):
    """Moves boxes [B, R, 4] by the deltas of their class and clips them to the images.

    deltas: [B, R, 4 K], or [B, R, 4] for all classes alike; classes: [B, R]; hw:
    [B, 2]. Without gradient: a stage does not train the one before it.
    """
    if deltas.shape[-1] > 4:
        by_class = deltas.reshape(*deltas.shape[:-1], -1, 4)  # [B, R, K, 4]
        deltas = jnp.take_along_axis(by_class, classes[..., None, None], axis=2)
        deltas = deltas[:, :, 0]  # [B, R, 4]
    moved = box_maths.decode(deltas, boxes, d.rules.boxes.weights[stage])
    return jax.lax.stop_gradient(jax.vmap(box_maths.clip)(moved, hw))
