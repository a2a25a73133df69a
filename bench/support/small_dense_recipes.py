"""A recipe of segmentation or detection, so small that a CPU trains it in minutes.

What stays is what makes the recipe: its system, losses, stages, optimizer and schedule.
What shrinks are widths, depths, the canvas, numbers of regions, and chance: neither
flips nor jitter, so that a few pictures can be learned by heart.
"""

import re

from mixjax.config.recipes import flat

WIDTH, DEPTH = 64, 4  # of a transformer
PYRAMID, HIDDEN = 32, 64  # channels
ANCHORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # sizes, in sides of the canvas
TRANSFORMER = {
    "width": WIDTH,
    "depth": DEPTH,
    "heads": 4,
    "drop_path": 0.0,
    "pretrained_grid": (8, 8),
    "window": 4,
    "global_blocks": (1, 3),
    "taps": (0, 1, 2, 3),
}
RESNET = {"layers": (1, 1, 1), "widths": (16, 32, 64), "stem_width": 16}
FIELDS = {  # of any recipe that has them
    "model.precision": "float32",
    "model.neck.width": PYRAMID,
    "model.fpn.width": PYRAMID,
    "model.simple_pyramid.width": PYRAMID,
    "model.uper_head.width": PYRAMID,
    "model.uper_head.dropout": 0.0,
    "model.fcn_head.width": PYRAMID,
    "model.fcn_head.dropout": 0.0,
    "model.rpn_head.width": PYRAMID,
    "model.res5.layers": 1,
    "model.res5.width": 128,
    "method.rpn.before": (200, 100),
    "method.rpn.after": (100, 50),
    "method.rpn.samples": 64,
    "method.boxes.samples": 64,
    "method.test.count": 30,
    "method.test.candidates": 400,
    "optim.weight_decay": 0.0,
    "optim.layer_decay": 1.0,
    "optim.layers": (DEPTH,),
    "data.threads": 2,
    "data.eval_batch": 8,
    "evals.detect.precise": 0,
}
HEADS = {"width": PYRAMID, "fc_width": HIDDEN, "convs": 1}
VIEWS = {
    "segment": "segment_crop({side}, scale=({part}, {part}), share=1.) | normalize",
    "detect": "short_side(({side},), longest={side}, canvas={side}, objects=20, "
    "mask_side={mask_side}, flip=0.) | normalize",
}


def fields(config, source: str, split: str, side: int, classes: int) -> dict:
    """{field: value} that make a dense recipe small, on `split` of `source`.

    side: of the canvas, in pixels; a multiple of 64. classes: of the source.
    """
    old, encoder = flat(config.to_dict()), config.model.encoder
    narrow = TRANSFORMER if encoder.name == "vit_dense" else RESNET
    if encoder.get("window") == 0:
        narrow = narrow | {"window": 0, "global_blocks": ()}
    wanted = {f"model.encoder.{k}": v for k, v in narrow.items()} | FIELDS
    wanted["model.encoder.image_size"] = (side, side)
    wanted |= {"evals.segment.crop": side, "evals.segment.stride": side // 2}
    longest = 4 * side
    window = f"segment_fit({side}, longest={longest}) | normalize"
    wanted["evals.segment.view"] = window
    for name, value in old.items():
        part, _, field = name.removeprefix("model.").partition(".")
        if part.startswith(("box_head", "mask_head")) and field in HEADS and value:
            wanted[name] = HEADS[field]
        if name.endswith("head.classes") or re.search(r"head_\d.classes$", name):
            wanted[name] = classes
        if name.endswith("every_epochs"):
            wanted[name] = 0.0
    wanted |= {"data.source": source, "data.split": split, "data.eval_split": split}
    mask_side = 56 if config.method.get("masks") else 0
    view = VIEWS[config.method.name].format(
        side=side, mask_side=mask_side, part=side / 512
    )
    wanted["data.views"] = (view,)
    seen = f", objects=20, mask_side={mask_side}" * (config.method.name == "detect")
    whole = f"fit({side}, longest={side}, canvas={side}{seen}) | normalize"
    wanted["data.eval_view"] = whole
    if "anchors" in config.method:
        sizes = tuple(side * share for share in ANCHORS)
        one_map = len(config.method.anchors.strides) == 1
        each = tuple((size,) for size in sizes)
        wanted["method.anchors.sizes"] = (sizes,) if one_map else each
    return {k: v for k, v in wanted.items() if k in old and old[k] != v}


def length(steps: int, rate: float) -> dict:
    """{field: value}: so many steps, and as many to an epoch of the schedule."""
    return {
        "steps": steps,
        "epochs": 1.0,
        "schedule.base": rate,
        "schedule.warmup_epochs": 0.1,
        "schedule.milestones": (0.8,),
        "checkpoint.every_epochs": 0.5,
        "log.every": max(steps // 10, 1),
    }
