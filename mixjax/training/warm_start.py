"""init_from: the weights of an earlier run, or of a file, for a new state.

The steps are those of `warm_start`: read the arrays of the parts that the new network
shares, adapt them to it (models/adapt_weights.py), compare shapes, put them on devices.
Between the steps there are only plain dicts {part: {path inside it: array}}.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from mixjax.errors import UsageError
from mixjax.export import read_foreign, weights
from mixjax.models import adapt_weights
from mixjax.run import checkpoints, ledger
from mixjax.run.workdir import read_config

log = logging.getLogger("mixjax")
KINDS = ("params", "stats")


def warm_start(config, layout) -> tuple[dict, dict]:
    """({"params", "stats"} from config.init_from, the origin for the run's ledger).

    init_from is the workdir of a run, or a file of weights, of this project or another;
    the origin of a file is not known: {}. layout: a TrainState of shapes and shardings.
    A part of the network (encoder, decoder, ...) is taken whole, with its batch
    statistics, if both networks have it; what starts from scratch is left out.
    UsageError if no part is shared, or names the tensors that are missing, too many, or
    of another shape or type.
    """
    path, new = Path(config.init_from).expanduser(), config.model.to_dict()
    wanted = {kind: getattr(layout, kind) for kind in KINDS}
    if path.is_file():
        return from_file(config.init_from, wanted, new), {}
    old = read_config(config.init_from)["model"]
    trees, step = from_run(config.init_from, wanted, old, new)
    return trees, ledger.make_origin(path, step)


def from_run(path: str, layout: dict, old: Mapping, new: Mapping) -> tuple[dict, int]:
    """(the weights in the newest checkpoint of workdir `path`, its step).

    layout: {"params", "stats"}, shapes and shardings. old, new: config.model of the two
    networks. Only parts that are taken are read from disk.
    """
    with checkpoints.opened(path, "init_from") as (manager, step):
        parts = checkpoints.part_names(manager, step)
        arrays = {}
        for kind, sections in layout.items():
            names = parts_to_read(parts, sections, new)
            arrays[kind] = checkpoints.read_parts(manager, step, kind, names)
    name = f"{path}, step {step}"
    return take(path, name, parts, arrays, layout, old, new), step


def from_file(path: str, layout: dict, new: Mapping) -> dict:
    """The weights in a file; see from_run."""
    file = Path(path).expanduser()
    foreign = read_foreign.read(file, f"init_from={path}", new)
    trees = dict(zip(KINDS, weights.trees(foreign.arrays), strict=True))
    arrays = {
        kind: {part: checkpoints.by_path(tree) for part, tree in sections.items()}
        for kind, sections in trees.items()
    }
    parts = list(trees["params"])
    return take(path, str(file), parts, arrays, layout, foreign.model, new)


def parts_to_read(old_parts: list[str], wanted: Iterable[str], new: Mapping) -> list:
    """The parts of the old network that hold the arrays of the `wanted` new ones."""
    cut = adapt_weights.lacks_res5(old_parts, new)
    sources = {"encoder" if cut and part == "res5" else part for part in wanted}
    return [part for part in old_parts if part in sources]


def take(
    path: str,
    name: str,
    old_parts: list[str],
    arrays: dict,
    layout: dict,
    old: Mapping,
    new: Mapping,
) -> dict:
    """{"params", "stats"} on devices, of the parts that both networks have.

    path: init_from as the recipe has it, for messages; name: for the log. arrays:
    {kind: {old part: {path: array}}}. layout, old, new: see from_run.
    """
    cut = adapt_weights.lacks_res5(old_parts, new)
    available = [*old_parts, "res5"] if cut else old_parts
    shared = [part for part in layout["params"] if part in available]
    if not shared:
        raise UsageError(
            f"init_from={path} has no part in common with this network, only "
            f"{available}."
        )
    taken = {kind: {} for kind in layout}
    for kind, sections in layout.items():
        by_part = adapt_weights.cut_res5(arrays[kind], old_parts, new)
        for part in filter(sections.__contains__, shared):
            shapes = checkpoints.by_path(sections[part])
            adapted, fresh = adapt_weights.adapt_part(
                part, by_part.get(part, {}), shapes, old, new
            )
            kept = {k: v for k, v in shapes.items() if k not in fresh}
            checkpoints.compare(
                checkpoints.shapes_of(adapted),
                checkpoints.shapes_of(kept),
                f"init_from={path}: {part}",
            )
            taken[kind][part] = checkpoints.nested(
                {k: checkpoints.on_devices(adapted[k], kept[k]) for k in kept}
            )
    size = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(taken["params"]))
    log.info("init_from %s: %s (%d weights)", name, shared, size)
    return taken
