"""What config.method of a detector says, as tuples."""

from collections.abc import Mapping
from typing import NamedTuple

from mixjax.config.registry import call
from mixjax.errors import UsageError, check_name


class Anchors(NamedTuple):
    """The boxes that the region proposal network begins with."""

    strides: tuple[int, ...]  # of the maps
    sizes: tuple[tuple[float, ...], ...]  # of each map
    ratios: tuple[float, ...]  # height / width
    offset: float  # of the first centre, in strides


class Rpn(NamedTuple):
    """The region proposal network; pairs are for training and for test."""

    low: float  # IoU under which an anchor shows nothing,
    high: float  # and from which it shows an object
    low_quality: float  # IoU from which an object's best anchors are positive, too
    inside: bool  # anchors that leave the picture are left out
    samples: int
    fraction: float  # of positives, at most
    beta: float  # of the smooth L1; 0 for L1
    before: tuple[int, int]  # proposals of each map before NMS
    after: tuple[int, int]  # and of all maps after it
    threshold: float  # IoU over which NMS suppresses


class Boxes(NamedTuple):
    """The stages that classify and refine regions."""

    strides: tuple[int, ...]  # of the maps to pool from
    thresholds: tuple[float, ...]  # of IoU, one for each stage
    weights: tuple[tuple[float, ...], ...]  # of the deltas of each stage
    loss_weights: tuple[float, ...]
    samples: int
    fraction: float
    resample: bool  # every stage draws anew; else later ones take all of the first's
    share_gradient: bool  # each of n stages sends 1 / n of its gradient to the maps
    side: int  # of what is pooled
    loss: str  # "l1" or "giou"
    loss_weight: float  # of the boxes'


class Masks(NamedTuple):
    """The masks of positive regions."""

    pooled: int  # side of what is pooled; 0: the box head's own map (C4)
    side: int  # of a mask
    every_stage: bool  # a head for each; else one, on the first stage's regions


class Test(NamedTuple):
    """What becomes of the heads' outputs at test."""

    score: float
    nms: float
    count: int
    candidates: int  # pairs of region and class that NMS looks at
    average: str  # over the stages: of "probabilities" or "logits"


class Rules(NamedTuple):
    """config.method, read."""

    anchors: Anchors
    rpn: Rpn
    boxes: Boxes
    masks: Masks | None
    test: Test


def read(
    anchors: Mapping, rpn: Mapping, boxes: Mapping, masks: Mapping, test: Mapping
) -> Rules:
    """The sections of config.method; UsageError for what does not fit."""
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
                f"but method.boxes.thresholds {len(rules.boxes.thresholds)} stages."
            )
    if len(rules.anchors.strides) != len(rules.anchors.sizes):
        raise UsageError(
            f"method.anchors.sizes has entries for {len(rules.anchors.sizes)} maps, "
            f"but method.anchors.strides for {len(rules.anchors.strides)}."
        )
    return rules
