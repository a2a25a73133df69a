"""Average precision of a detector on held-out images.

metric "coco": boxes and, with a mask head, masks, scored by pycocotools; "voc07" and
"voc12": boxes, scored by the rules of PASCAL VOC. The detections are written to
detections/<protocol>_<step>.json, in the result format of COCO's own tools.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from pycocotools import mask as coco_masks

from mixjax.data import Data
from mixjax.dense.masks import paste
from mixjax.errors import UsageError, check_name
from mixjax.evals import coco_scores, voc_scores
from mixjax.evals.precise import precise as precise_stats
from mixjax.evals.voc_scores import Detections
from mixjax.runtime import atomic_write
from mixjax.sharding import meshes

LEDGER = True
METRICS = ("coco", "voc07", "voc12")
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
THREADS = 8  # that paste masks into images


class Detection(NamedTuple):
    """What evaluates a detector on held-out images."""

    predict: Callable  # see predictor
    refresh: Callable  # state -> state with the batch statistics to evaluate with
    data: Data  # the held-out images
    category_ids: Sequence[int]  # the annotation file's number of each class
    protocol: str
    metric: str
    workdir: Path
    check: Callable


def encode_masks(masks, boxes, height: int, width: int) -> list[dict]:
    """Run-length codes of masks [n, S, S], each pasted into its box of [n, 4]."""
    codes = []
    for mask, box in zip(masks, boxes, strict=True):
        pixels = paste(mask, box, height, width)  # [height, width]
        # pycocotools counts runs down the columns and therefore reads Fortran order.
        codes.append(coco_masks.encode(np.asfortranarray(pixels, np.uint8)))
    return codes


def select_valid(detections: dict, i: int) -> dict:
    """The valid detections of image i of a batch whose boxes are not empty."""
    boxes = detections["original"][i]  # [n, 4]
    # Clipping to the image may leave boxes without area.
    valid = detections["valid"][i] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    names = ("original", "scores", "classes", "masks")
    return {k: detections[k][i][valid] for k in names if k in detections}


def with_encoded_masks(objects, detections: dict) -> dict:
    """Detections of an image with their masks, if any, as run-length codes."""
    if "masks" not in detections:
        return detections
    size = objects.height, objects.width
    masks = encode_masks(detections["masks"], detections["original"], *size)
    return {**detections, "masks": masks}


def collect(predict: Callable, data, state, check: Callable) -> tuple[list, list, int]:
    """(Objects, detections, overflow) of every readable image, each once.

    overflow: the number of pairs of region and class that did not fit into NMS.
    """
    truth, pending, overflow = [], [], 0
    with (
        contextlib.closing(data.sweep()) as batches,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for batch in batches:
            check()  # a signal to stop is heeded between batches
            outputs = jax.device_get(predict(state, batch, data.resident))
            for i in np.flatnonzero(outputs["counts"]):
                objects = data.source.labels[outputs["index"][i]]
                truth.append(objects)
                # Pasting masks is slow and overlaps with the next batch on the devices.
                detections = select_valid(outputs, i)
                pending.append(pool.submit(with_encoded_masks, objects, detections))
                overflow += int(outputs["overflow"][i])
        return truth, [p.result() for p in pending], overflow


def score_coco(
    truth: list, detections: list[dict], category_ids, names
) -> tuple[list[dict], dict]:
    """(rows of a result file, {metric: percent})."""
    rows = []
    for objects, result in zip(truth, detections, strict=True):
        rows += coco_scores.results(
            objects.id,
            result["original"],
            result["scores"],
            result["classes"],
            category_ids,
            result.get("masks"),
        )
    annotations = coco_scores.ground_truth(truth, category_ids, names)
    kinds = {"bbox": "AP"}
    if any("masks" in result for result in detections):
        kinds["segm"] = "APmask"
    metrics = {}
    for kind, name in kinds.items():
        numbers, _ = coco_scores.score(annotations, rows, kind)
        for metric in SHOWN:
            if numbers[metric] >= 0:  # -1: there are no such objects
                suffix = metric.removeprefix("AP")
                # APmask50 but APmask_s: "APmasks" would read as a plural.
                if suffix.isalpha() and kind == "segm":
                    suffix = f"_{suffix}"
                metrics[name + suffix] = 100 * numbers[metric]
    return rows, metrics


def score_voc(
    truth: list, detections: list[dict], category_ids, year: str
) -> tuple[list[dict], dict]:
    """(rows of a result file, {metric: percent}); year: "voc07" or "voc12"."""
    by_image = [
        Detections(result["original"], result["scores"], result["classes"])
        for result in detections
    ]
    rows = []
    for objects, result in zip(truth, by_image, strict=True):
        rows += coco_scores.results(objects.id, *result, category_ids, None)
    eleven = year == "voc07"
    return rows, voc_scores.score(truth, by_image, len(category_ids), eleven)


def refresher(method, train, batches: int, momentum: float, mesh) -> Callable:
    """state -> the state with batch statistics of `batches` batches of `train`.

    momentum: of model.norm. Compiled once for all states.
    """

    def update(state, batch, resident):
        key = jax.random.key(0)  # statistics must not depend on when they are taken
        augmented = train.augment(batch, resident, key)
        return method.loss(state.params, state, augmented, key)[1].stats

    run = jax.jit(update, out_shardings=meshes.replicated(mesh))

    def refresh(state):
        update_stats = lambda stats, batch: run(
            state.replace(stats=stats), batch, train.resident
        )
        with contextlib.closing(train.batches(0, batches)) as read:
            stats = precise_stats(update_stats, state.stats, read, momentum)
        return state.replace(stats=stats)

    return refresh


def predictor(method, data, mesh) -> Callable:
    """Jits (state, batch, resident) -> method.predict's arrays, with index and counts.

    counts: [B] bool, False for the padding of the last batch.
    """

    def predict(state, batch, resident):
        augmented = data.augment(batch, resident, jax.random.key(0))
        detections = method.predict(state, augmented)
        return detections | {"index": batch["index"], "counts": batch["valid"]}

    return jax.jit(predict, out_shardings=meshes.replicated(mesh))


def evaluate(detection: Detection, state, step: int, writer) -> dict[str, float]:
    """Scores the detector and writes its detections: {protocol/metric: value}."""
    state = detection.refresh(state)
    truth, detections, overflow = collect(
        detection.predict, detection.data, state, detection.check
    )
    category_ids = detection.category_ids
    if detection.metric == "coco":
        names = detection.data.source.names
        rows, metrics = score_coco(truth, detections, category_ids, names)
    else:
        rows, metrics = score_voc(truth, detections, category_ids, detection.metric)
    protocol = detection.protocol
    if jax.process_index() == 0:  # every process has all detections
        file = Path(detection.workdir) / "detections" / f"{protocol}_{step}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write.write(file, json.dumps(rows))
    metrics |= {"examples": len(truth), "overflow": overflow}
    return {f"{protocol}/{name}": value for name, value in metrics.items()}


def make(
    *,
    protocol: str,
    metric: str,
    examples: int,
    precise: int,
    recipe: Mapping,
    sets,
    method,
    mesh,
    check: Callable,
    workdir: Path,
) -> Callable | None:
    """The evaluator: AP, AP50, AP75 and so on, in percent.

    examples: number of held-out images, spread evenly; 0 for all. precise: number of
    training batches to compute batch statistics from (evals/precise.py), 0 to use the
    running ones. Returns None if there is no held-out split.
    """
    check_name("evals.detect.metric", metric, METRICS)
    data = sets.test(examples)
    if data is None:
        return None
    if method.predict is None or not sets.scenes:
        raise UsageError(
            "evals: name='detect' needs method.name='detect' and data with boxes."
        )
    refresh = lambda state: state
    if precise:
        train = sets.training(recipe["batch"])
        momentum = recipe["model"]["norm"]["momentum"]
        refresh = refresher(method, train, precise, momentum, mesh)
    detection = Detection(
        predictor(method, data, mesh),
        refresh,
        data,
        sets.category_ids(),
        protocol,
        metric,
        workdir,
        check,
    )
    return functools.partial(evaluate, detection)
