"""The sections of config.method of a detector, checked and as named tuples."""

from collections.abc import Mapping
from typing import NamedTuple

from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name


class Anchors(NamedTuple):
    """The reference boxes of the region proposal network."""

    strides: tuple[int, ...]  # of the maps, in pixels
    sizes: tuple[tuple[float, ...], ...]  # of each map, in pixels
    ratios: tuple[float, ...]  # height / width
    offset: float  # of the first centre, in strides


class Rpn(NamedTuple):
    """The region proposal network; pairs hold (training, test)."""

    low: float  # an anchor with a lower IoU is negative
    high: float  # an anchor with this IoU or more is positive
    low_quality: float  # IoU from which an object's best anchors are positive, too
    inside: bool  # whether anchors that cross the border are left out
    samples: int  # anchors per image that have a loss
    fraction: float  # of positives among the samples, at most
    beta: float  # of the smooth L1 loss; 0 for plain L1
    before: tuple[int, int]  # proposals kept of each map before NMS
    after: tuple[int, int]  # proposals kept of all maps after NMS
    threshold: float  # IoU above which NMS suppresses


class Boxes(NamedTuple):
    """The stages that classify and refine regions."""

    strides: tuple[int, ...]  # of the maps to pool from, in pixels
    thresholds: tuple[float, ...]  # IoU of positive regions, one for each stage
    weights: tuple[tuple[float, ...], ...]  # of the deltas of each stage
    loss_weights: tuple[float, ...]  # of each stage
    samples: int  # regions per image
    fraction: float  # of positives among the samples, at most
    resample: bool  # every stage samples anew; else later ones keep the first's regions
    share_gradient: bool  # each of n stages sends 1 / n of its gradient to the maps
    side: int  # of the pooled regions
    loss: str  # "l1" or "giou"
    loss_weight: float  # of the box loss


class Masks(NamedTuple):
    """The masks of positive regions."""

    pooled: int  # side of the pooled regions; 0: what the box head reads (C4)
    side: int  # of a predicted mask
    every_stage: bool  # a head in every stage; else only in the first


class Test(NamedTuple):
    """How detections are selected from the heads' outputs."""

    score: float  # only detections above it are kept
    nms: float  # IoU above which NMS suppresses
    count: int  # detections per image, at most
    candidates: int  # pairs of region and class that enter NMS, at most
    average: str  # over the stages: "probabilities" or "logits"


class Rules(NamedTuple):
    """All sections of config.method of a detector."""

    anchors: Anchors
    rpn: Rpn
    boxes: Boxes
    masks: Masks | None  # None: boxes alone
    test: Test


def read(
    anchors: Mapping, rpn: Mapping, boxes: Mapping, masks: Mapping, test: Mapping
) -> Rules:
    """Reads the sections of config.method; UsageError for values that do not fit."""
    rules = Rules(
        call("method.anchors", Anchors, anchors),
        call("method.rpn", Rpn, rpn),
        call("method.boxes", Boxes, boxes),
        call("method.masks", Masks, masks) if masks else None,
        call("method.test", Test, test),
    )
    check_name("method.boxes.loss", rules.boxes.loss, ["l1", "giou"])
    check_name("method.test.average", rules.test.average, ["probabilities", "logits"])
    for name in ("weights", "loss_weights"):
        if len(getattr(rules.boxes, name)) != len(rules.boxes.thresholds):
            raise UsageError(
                f"method.boxes.{name} has {len(getattr(rules.boxes, name))} entries, "
                f"but method.boxes.thresholds has {len(rules.boxes.thresholds)}; both "
                f"need one for each stage."
            )
    if len(rules.anchors.strides) != len(rules.anchors.sizes):
        raise UsageError(
            f"method.anchors.sizes has {len(rules.anchors.sizes)} entries, but "
            f"method.anchors.strides has {len(rules.anchors.strides)}; both need "
            f"one for each map."
        )
    return rules
