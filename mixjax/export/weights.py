"""The weights in a run's newest checkpoint, in the host's memory."""

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
    """The encoder of a network, and perhaps parts on top of it.

    arrays: by path, "encoder/norm/scale"; those that end in mean or var are batch
    statistics. model: config.model with the sections of these parts only. config: the
    run's whole configuration. step: of the checkpoint. part: "encoder" or "teacher".
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
    """The encoder of the run in `workdir`, or its teacher's, with the parts asked for.

    head: whether with the classifier; None: if there is one. UsageError if the run does
    not have a part that is asked for.
    """
    check_name("--part", part, PARTS)
    saved = Path(workdir).expanduser() / "config.json"
    if not saved.is_file():
        raise UsageError(f"--workdir={workdir} is not a run: {saved} does not exist.")
    config = recipes.recorded(saved).to_dict()
    with checkpoints.opened(workdir, "--workdir") as (manager, step):
        saved = manager.item_metadata(step)["state"].tree
        if part == "teacher":
            saved = saved.get("teacher") or {}
            if not saved:
                raise UsageError(
                    f"--part=teacher: the method of {workdir}, "
                    f"{config['method']['name']}, has no teacher; use encoder."
                )
        names = parts_to_read(saved["params"], workdir, part, decoder, head)
        tree = {
            kind: {k: v for k, v in (saved.get(kind) or {}).items() if k in names}
            for kind in ("params", "stats")
        }
        tree = {"teacher": tree} if part == "teacher" else tree
        sections = checkpoints.read_arrays(manager, step, tree)
    sections = sections["teacher"] if part == "teacher" else sections
    common = [k for k in ("precision", "norm") if k in config["model"]]
    model = {k: config["model"][k] for k in (*common, *names)}
    return Weights(flat(sections), model, config, int(step), part)


def parts_to_read(
    saved: Mapping, workdir: str, part: str, decoder: bool, head: bool | None
) -> list[str]:
    """The names of the parts to read; UsageError if one is missing.

    saved: parameters in the checkpoint by part. The others: see load.
    """
    names = ["encoder"]
    if decoder:
        decoders = [name for name in DECODERS if name in saved]
        if not decoders:
            raise UsageError(
                f"--decoder: {workdir} has none for its {part}, only "
                f"{', '.join(saved)}; a run of mae or simmim has one."
            )
        names += decoders
    if head and "classifier" not in saved:
        raise UsageError(
            f"--head: {workdir} has no classifier for its {part}, only "
            f"{', '.join(saved)}."
        )
    if "classifier" in saved and head is not False:
        names.append("classifier")
    return names


def flat(sections: Mapping) -> Arrays:
    """{"params", "stats"} of parts -> arrays by path, statistics included.

    linen's collection name batch_stats is left out of the paths, as files have none.
    """
    params = checkpoints.by_path(sections.get("params", {}))
    stats = checkpoints.by_path(sections.get("stats", {}))
    stats = {k.replace("/batch_stats/", "/"): v for k, v in stats.items()}
    return {k: np.asarray(v) for k, v in (params | stats).items()}


def trees(arrays: Arrays) -> tuple[dict, dict]:
    """(params, stats) of arrays by path, the inverse of flat."""
    params = {k: v for k, v in arrays.items() if not k.endswith(STATISTICS)}
    stats = {k: v for k, v in arrays.items() if k.endswith(STATISTICS)}
    stats = {k.replace("/", "/batch_stats/", 1): v for k, v in stats.items()}
    return checkpoints.nested(params), checkpoints.nested(stats)


# --- the network -----------------------------------------------------------------


def plain(model: Mapping) -> dict:
    """config.model in float32, without scan, rematerialisation and drop path.

    They change how the network is computed or trained, but not its arrays.
    """
    model = {k: dict(v) if isinstance(v, Mapping) else v for k, v in model.items()}
    for section in model.values():
        if isinstance(section, dict):
            section |= {k: False for k in ("scan",) if k in section}
            section |= {k: "none" for k in ("remat",) if k in section}
            section |= {k: 0.0 for k in ("drop_path",) if k in section}
    return model | {"precision": "float32"}


def network_of(model: Mapping):
    """(the network of plain(model), the shape of one image [1, H, W, C] for it)."""
    network = models.make(plain(model))
    geometry = network.geometry
    shape = (1, *geometry.image_size, geometry.channels)
    return network, jax.ShapeDtypeStruct(shape, np.float32)


def shapes(model: Mapping) -> dict:
    """{path: shape} of the arrays of a network of config.model."""
    network, image = network_of(model)
    params, stats = jax.eval_shape(network.init, jax.random.key(0), image)
    stats = checkpoints.by_path(stats)
    stats = {k.replace("/batch_stats/", "/"): v for k, v in stats.items()}
    return checkpoints.by_path(params) | stats


def check(weights: Weights, source: str) -> None:
    """UsageError unless the arrays are those of a network of weights.model."""
    actual = checkpoints.shapes_of(weights.arrays)
    checkpoints.compare(actual, checkpoints.shapes_of(shapes(weights.model)), source)


# --- other sizes -----------------------------------------------------------------


def resized(weights: Weights, size: tuple[int, int]) -> Weights:
    """The weights for images of another size: tables of positions are resampled.

    Fixed positions become parameters. UsageError if patches or windows do not fill the
    new size, or if there is a decoder, which works for one size only.
    """
    old = weights.model
    if tuple(old["encoder"]["image_size"]) == tuple(size):
        return weights
    decoders = [name for name in DECODERS if name in old]
    if decoders:
        raise UsageError(
            f"--image_size: the {decoders[0]} works for images of "
            f"{tuple(old['encoder']['image_size'])} only; leave it out."
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
    adapted, _ = adapt_weights.adapt_part(
        "encoder", inside(weights.arrays), inside(new), old, model
    )
    adapted = {f"encoder/{k}": np.asarray(v) for k, v in adapted.items()}
    return weights._replace(arrays=weights.arrays | adapted, model=model)


def fixed_table(encoder: Mapping, width: int) -> np.ndarray:
    """[1, 1 + L, width], the sine-cosine positions of an encoder's or decoder's tokens.

    encoder: its section of config.model, whose grid it is.
    """
    grid = adapt_weights.grid(encoder)
    return positions.sincos_2d(grid, width, class_token=True)[None]
