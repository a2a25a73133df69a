"""The weights of a run, as they are in its newest checkpoint, in the host's memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mixjax import models
from mixjax.config import recipes
from mixjax.errors import UsageError, check_name
from mixjax.export.name_rules import STATISTICS, Arrays
from mixjax.models import adapt_weights, positions
from mixjax.run import checkpoints

PARTS = ("encoder", "teacher")
DECODERS = ("decoder", "pixel_head")


class Weights(NamedTuple):
    """Some parts of a network.

    arrays: by path, "encoder/norm/scale"; batch statistics among them, ending in mean
    or var. model: config.model with the sections of these parts alone. config: all of
    the run's. step: of the checkpoint. part: "encoder" or "teacher".
    """

    arrays: Arrays
    model: dict
    config: dict
    step: int
    part: str

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(k for k in self.model if k not in ("precision", "norm"))


def load(workdir: str, part: str, decoder: bool, head: bool | None) -> Weights:
    """The encoder of the run in `workdir`, or its teacher's, and what is asked for.

    head: None for a classifier where there is one. UsageError if a part is asked for
    that the run has not.
    """
    check_name("--part", part, PARTS)
    saved = Path(workdir).expanduser() / "config.json"
    if not saved.is_file():
        raise UsageError(f"--workdir={workdir} is not a run: {saved} does not exist.")
    config = recipes.recorded(saved).to_dict()
    with checkpoints.opened(workdir, "--workdir") as (manager, step):
        there = manager.item_metadata(step)["state"].tree
        if part == "teacher":
            there = there.get("teacher") or {}
            if not there:
                raise UsageError(
                    f"--part=teacher: the method of {workdir}, "
                    f"{config['method']['name']}, has no teacher; take encoder."
                )
        names = wanted(there["params"], workdir, part, decoder, head)
        tree = {
            kind: {k: v for k, v in (there.get(kind) or {}).items() if k in names}
            for kind in ("params", "stats")
        }
        asked = {"teacher": tree} if part == "teacher" else tree
        found = checkpoints.read_arrays(manager, step, asked)
    found = found["teacher"] if part == "teacher" else found
    sections = (*(k for k in ("precision", "norm") if k in config["model"]), *names)
    model = {k: config["model"][k] for k in sections}
    return Weights(flat(found), model, config, int(step), part)


def wanted(there, workdir: str, part: str, decoder: bool, head: bool | None) -> list:
    """The parts to read; UsageError if one is not there."""
    names = ["encoder"]
    if decoder:
        found = [name for name in DECODERS if name in there]
        if not found:
            raise UsageError(
                f"--decoder: {workdir} has none for its {part}, only "
                f"{', '.join(there)}; a run of mae or simmim has one."
            )
        names += found
    if head and "classifier" not in there:
        raise UsageError(
            f"--head: {workdir} has no classifier for its {part}, only "
            f"{', '.join(there)}."
        )
    if "classifier" in there and head is not False:
        names.append("classifier")
    return names


def flat(found: Mapping) -> Arrays:
    """{"params", "stats"} of parts -> arrays by path, statistics among them."""
    params = checkpoints.by_path(found.get("params", {}))
    stats = checkpoints.by_path(found.get("stats", {}))
    stats = {k.replace("/batch_stats/", "/"): v for k, v in stats.items()}
    return {k: np.asarray(v) for k, v in (params | stats).items()}


def trees(arrays: Arrays) -> tuple[dict, dict]:
    """(params, stats) of arrays by path, the inverse of flat."""
    params = {k: v for k, v in arrays.items() if not k.endswith(STATISTICS)}
    stats = {k: v for k, v in arrays.items() if k.endswith(STATISTICS)}
    stats = {k.replace("/", "/batch_stats/", 1): v for k, v in stats.items()}
    return checkpoints.nested(params), checkpoints.nested(stats)


# --- a network for them ----------------------------------------------------------


def plain(model: Mapping) -> dict:
    """config.model in float32, without what changes how it is computed alone."""
    model = {k: dict(v) if isinstance(v, Mapping) else v for k, v in model.items()}
    for section in model.values():
        if isinstance(section, dict):
            section |= {k: False for k in ("scan",) if k in section}
            section |= {k: "none" for k in ("remat",) if k in section}
            section |= {k: 0.0 for k in ("drop_path",) if k in section}
    return model | {"precision": "float32"}


def network_of(model: Mapping):
    """The network of config.model as plain has it, and an image of zeros for it."""
    network = models.make(plain(model))
    geometry = network.geometry
    shape = (1, *geometry.image_size, geometry.channels)
    return network, jax.ShapeDtypeStruct(shape, np.float32)


def shapes(model: Mapping) -> dict:
    """{path: shape} of what a network of config.model holds."""
    network, image = network_of(model)
    params, stats = jax.eval_shape(network.init, jax.random.key(0), image)
    stats = checkpoints.by_path(stats)
    stats = {k.replace("/batch_stats/", "/"): v for k, v in stats.items()}
    return checkpoints.by_path(params) | stats


def check(weights: Weights, what: str) -> None:
    """UsageError unless the arrays are those of a network of weights.model."""
    found = checkpoints.shapes_of(weights.arrays)
    checkpoints.compare(found, checkpoints.shapes_of(shapes(weights.model)), what)


# --- other sizes -----------------------------------------------------------------


def resized(weights: Weights, size: tuple[int, int]) -> Weights:
    """The same for pictures of another size: position tables are resampled.

    Fixed positions become parameters. UsageError if patches or windows do not fill the
    new size, or if there is a decoder, whose positions are of one size.
    """
    old = weights.model
    if tuple(old["encoder"]["image_size"]) == tuple(size):
        return weights
    decoders = [name for name in DECODERS if name in old]
    if decoders:
        raise UsageError(
            f"--image_size: the {decoders[0]} is made for "
            f"{tuple(old['encoder']['image_size'])}; leave it out."
        )
    encoder = {**old["encoder"], "image_size": tuple(size)}
    if "position" in encoder:
        encoder["position"] = "learned"
    model = {**old, "encoder": encoder}
    new = {k: v for k, v in shapes(model).items() if k.startswith("encoder/")}
    inside = lambda arrays: {
        k.removeprefix("encoder/"): v
        for k, v in arrays.items()
        if k.startswith("encoder/") and not k.endswith(STATISTICS)
    }
    given, _ = adapt_weights.adapt_part(
        "encoder", inside(weights.arrays), inside(new), old, model
    )
    given = {f"encoder/{k}": np.asarray(v) for k, v in given.items()}
    return weights._replace(arrays=weights.arrays | given, model=model)


def fixed_table(encoder: Mapping, width: int) -> np.ndarray:
    """[1, 1 + L, width], the positions that are no parameters here."""
    grid = adapt_weights.grid(encoder)
    return positions.sincos_2d(grid, width, class_token=True)[None]
