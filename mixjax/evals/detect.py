"""Average precision of what a detector finds in held-out pictures.

metric "coco": boxes and, where the detector draws any, masks, by pycocotools; "voc07"
and "voc12": boxes as PASCAL VOC counts them. The detections go to
detections/<protocol>_<step>.json, in the form that COCO's own tools read.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from pycocotools import mask as coco_masks

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
THREADS = 8  # that draw masks in the size of their pictures


def drawn(masks, boxes, height: int, width: int) -> list[dict]:
    """Masks [n, S, S] in their boxes [n, 4] as run lengths of a whole picture."""
    found = []
    for mask, box in zip(masks, boxes, strict=True):
        pixels = paste(mask, box, height, width)
        found.append(coco_masks.encode(np.asfortranarray(pixels, np.uint8)))
    return found


def kept(found: dict, i: int) -> dict:
    """The valid detections of picture i of a batch, those with an area."""
    boxes = found["original"][i]
    ok = found["valid"][i] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    names = ("original", "scores", "classes", "masks")
    return {k: found[k][i][ok] for k in names if k in found}


def collect(predict: Callable, data, state, check: Callable) -> tuple[list, list, int]:
    """(Objects, detections) of every readable picture once, and how many pairs of
    region and class NMS had no room for."""
    known, pending, overflow = [], [], 0

    def finish(objects, one):
        if "masks" not in one:
            return one
        size = objects.height, objects.width
        return {**one, "masks": drawn(one["masks"], one["original"], *size)}

    with (
        contextlib.closing(data.sweep()) as batches,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for batch in batches:
            check()
            found = jax.device_get(predict(state, batch, data.resident))
            for i in np.flatnonzero(found["counts"]):
                objects = data.source.labels[found["index"][i]]
                known.append(objects)
                pending.append(pool.submit(finish, objects, kept(found, i)))
                overflow += int(found["overflow"][i])
        return known, [p.result() for p in pending], overflow


def coco(known: list, found: list[dict], ids, names) -> tuple[list[dict], dict]:
    """(rows of a result file, {metric: percent})."""
    rows = []
    for objects, one in zip(known, found, strict=True):
        what = one["original"], one["scores"], one["classes"]
        rows += coco_scores.results(objects.id, *what, ids, one.get("masks"))
    truth, metrics = coco_scores.ground_truth(known, ids, names), {}
    kinds = {"bbox": "AP"}
    if any("masks" in one for one in found):
        kinds["segm"] = "APmask"
    for kind, name in kinds.items():
        numbers, _ = coco_scores.score(truth, rows, kind)
        for metric in SHOWN:
            if numbers[metric] >= 0:  # -1: there are no such objects
                tail = metric.removeprefix("AP")
                tail = f"_{tail}" if tail.isalpha() and kind == "segm" else tail
                metrics[name + tail] = 100 * numbers[metric]
    return rows, metrics


def voc(known: list, found: list[dict], ids, year: str) -> tuple[list[dict], dict]:
    """(rows of a result file, {metric: percent}); year: "voc07" or "voc12"."""
    each = [Detections(o["original"], o["scores"], o["classes"]) for o in found]
    rows = []
    for objects, one in zip(known, each, strict=True):
        rows += coco_scores.results(objects.id, *one, ids, None)
    return rows, voc_scores.score(known, each, len(ids), year == "voc07")


def refresher(method, train, batches: int, momentum: float, mesh) -> Callable:
    """state -> the state with batch statistics of so many batches of `train`.

    momentum: of model.norm. Compiled once, whatever the state.
    """

    def update(state, batch, resident):
        key = jax.random.key(0)
        seen = train.augment(batch, resident, key)
        return method.loss(state.params, state, seen, key)[1].stats

    run = jax.jit(update, out_shardings=meshes.replicated(mesh))

    def refresh(state):
        one = lambda stats, batch: run(
            state.replace(stats=stats), batch, train.resident
        )
        with contextlib.closing(train.batches(0, batches)) as read:
            stats = precise_stats(one, state.stats, read, momentum)
        return state.replace(stats=stats)

    return refresh


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

    examples: held-out pictures, spread evenly; 0 for all. precise: batch statistics
    come from so many training batches (evals/precise.py); 0: as they are. None if
    there is no held-out split.
    """
    check_name("evals.detect.metric", metric, METRICS)
    data = sets.test(examples)
    if data is None:
        return None
    if method.predict is None or not sets.scenes:
        raise UsageError("evals: detect needs method.name='detect' and its boxes.")

    def find(state, batch, resident):
        seen = data.augment(batch, resident, jax.random.key(0))
        found = method.predict(state, seen)
        return found | {"index": batch["index"], "counts": batch["valid"]}

    predict = jax.jit(find, out_shardings=meshes.replicated(mesh))
    ids, names = sets.category_ids(), data.source.names
    if precise:
        train = sets.training(recipe["batch"])
        momentum = recipe["model"]["norm"]["momentum"]
        refresh = refresher(method, train, precise, momentum, mesh)

    def run(state, step, writer):
        if precise:
            state = refresh(state)
        known, found, overflow = collect(predict, data, state, check)
        if metric == "coco":
            rows, metrics = coco(known, found, ids, names)
        else:
            rows, metrics = voc(known, found, ids, metric)
        if jax.process_index() == 0:
            file = Path(workdir) / "detections" / f"{protocol}_{step}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write.write(file, json.dumps(rows))
        metrics |= {"examples": len(known), "overflow": overflow}
        return {f"{protocol}/{name}": value for name, value in metrics.items()}

    return run
