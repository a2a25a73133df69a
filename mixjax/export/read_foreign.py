"""Weights of other projects as ours: arrays by path, and the network they belong to.

The notes in a file of our own give its config.model. For any other file it is read off
the shapes; what they do not tell (the heads of a ViT, the image size of a Swin) comes
from Hugging Face's config.json beside the file, from `hints`, or from the usual sizes,
and otherwise the user has to name it.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from mixjax.errors import UsageError
from mixjax.export import families, files, recognise
from mixjax.export import weights as store
from mixjax.export.name_rules import Arrays, place_of
from mixjax.export.weights import Weights

log = logging.getLogger("mixjax")
HINTED = ("encoder", "decoder")  # sections that hints may be about


def read(path: Path, source: str, hints: Mapping) -> Weights:
    """The weights in a file, and the network that they fit.

    source: the file's name in messages, such as "--from=x.pth". hints: sections of
    config.model, "encoder" and "decoder", for what shapes do not tell; image_size is
    one of the encoder's. UsageError if the file is refused, broken, unknown or not
    whole.
    """
    named, notes = files.read(path, source)
    config = notes.get("config") or {}
    if notes.get("to") == "npz":
        arrays, model = named, config["model"]
    else:
        arrays, model, method = translate(
            named, config.get("model"), path, source, hints
        )
        config = config or {"method": method}
    weights = Weights(arrays, model, config, int(notes.get("step", 0)), "encoder")
    store.check(weights, source)
    return weights


def translate(
    named: Arrays, model: dict | None, path: Path, source: str, hints: Mapping
) -> tuple[Arrays, dict, dict]:
    """(arrays by our path, config.model, what is known of config.method).

    model: config.model of the file's notes, None if it has none.
    """
    dialect, chosen = recognise.recognise(named, source)
    family = families.find(dialect.encoder)
    arrays = recognise.ours(chosen, dialect, source)
    beside = hugging_face(path.parent / "config.json", family.hf)
    known = bool(model)
    if not known:
        hints = {k: dict(hints.get(k, {})) | beside.get(k, {}) for k in HINTED}
        try:
            first = first_convolution(chosen, dialect, family.first_kernel)
            model = family.model_of(arrays, first, hints)
        except KeyError as error:
            raise UsageError(
                f"{source} is not whole: {error.args[0]} is missing."
            ) from error
    arrays, model = family.from_file(arrays, model, known)
    return arrays, model, beside.get("method", {})


def first_convolution(
    named: Arrays, dialect: recognise.Dialect, path: str
) -> tuple[int, int]:
    """(side, input channels) of the first convolution, whose kernel is ours at `path`.

    Read off the file's tensor [D, C, p, p], since our kernel may be a flat [p p C, D].
    """
    for name, array in named.items():
        place = place_of(name, dialect.rules)
        if place and place.path == path and array.ndim == 4:
            return array.shape[2], array.shape[1]
    raise KeyError("the first convolution")


def hugging_face(path: Path, family: families.HuggingFace | None) -> dict:
    """Hints from a config.json of Hugging Face beside the file, {} without one."""
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError):
        config = {}
    if "model_type" not in config or family is None:
        return {}
    eps = config.get("layer_norm_eps", family.default_eps)
    if eps != family.eps:
        log.info("%s has layer_norm_eps=%g, but ours is %g", path, eps, family.eps)
    size = config.get("image_size", 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    hints = family.hints(config)
    return hints | {"encoder": {"image_size": size} | hints.get("encoder", {})}
