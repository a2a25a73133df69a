"""Networks from configuration: a backbone and the parts on top of it.

config.model holds `precision`, `norm` where parts have batch norms, and one section per
part. `encoder` runs first, and `encoder.name` is a file of this folder; the others run
in the order of PARTS, since a config has no order of its own. Every part is a linen
module called as part(outputs so far, train=..., **its inputs) -> more outputs, and no
linen leaves this folder: the rest of the project sees dicts of arrays.

A part's fields are those of its section. Beside them it gets, if it has a field of that
name, `dtype` and `norm`, which are the same for all parts, and what the encoder's
geometry implies, unless its section sets it: `grid`, `image_size`, `channels`, and
`out`, the numbers of a patch's pixels. So a decoder whose target is not pixels has a
field `out` in its section.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mixjax.config.registry import call, load
from mixjax.errors import UsageError, check_name
from mixjax.models import (
    decoders,
    detection_heads,
    heads,
    norms,
    projectors,
    pyramids,
    res5,
    upernet,
    variational,
)
from mixjax.state import Geometry, Network

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PARTS = {  # in the order in which they run
    "decoder": decoders.TokenDecoder,
    "simple_pyramid": pyramids.SimplePyramid,
    "neck": pyramids.Neck,
    "fpn": pyramids.FPN,
    "uper_head": upernet.UperHead,
    "fcn_head": upernet.FCNHead,
    "rpn_head": detection_heads.RPNHead,
    "res5": res5.Res5,
    "box_head": detection_heads.BoxHead,
    "box_head_2": detection_heads.BoxHead,  # of the second stage of a cascade
    "box_head_3": detection_heads.BoxHead,
    "mask_head": detection_heads.MaskHead,
    "mask_head_2": detection_heads.MaskHead,
    "mask_head_3": detection_heads.MaskHead,
    "classifier": heads.Classifier,
    "pixel_head": heads.PixelHead,
    "target_head": heads.TargetHead,
    "token_projector": projectors.TokenProjector,
    "variational": variational.Variational,
    "projector": projectors.Projector,
    "region_projector": projectors.RegionProjector,
    "predictor": projectors.Predictor,
    "prototypes": projectors.Prototypes,
}


def make(config: Mapping) -> Network:
    """Builds the network of config.model; UsageError names a field that is wrong."""
    check_name("model.precision", config["precision"], PRECISIONS)
    dtype = PRECISIONS[config["precision"]]
    sections = {k: v for k, v in config.items() if k not in ("precision", "norm")}
    norm = norms.missing
    if "norm" in config:
        norm = call("model.norm", norms.make_norm, config["norm"])
    first = sections.pop("encoder")
    check_shared("model.encoder", first)
    backbone = load(__name__, first["name"], "model.encoder.name").make
    encoder = call("model.encoder", backbone, first, dtype=dtype, norm=norm)
    geometry = Geometry(
        tuple(encoder.image_size),
        encoder.channels,
        encoder.patch,
        encoder.grid,
        encoder.any_size,
    )
    parts = {"encoder": encoder}
    for name in sections:
        check_name("model part", name, PARTS)
    for name in [name for name in PARTS if name in sections]:
        section = sections[name]
        implied = {
            "grid": geometry.grid,
            "image_size": geometry.image_size,
            "channels": geometry.channels,
            "out": geometry.patch**2 * geometry.channels,
        }
        implied = {k: v for k, v in implied.items() if k not in section}
        check_shared(f"model.{name}", section)
        parts[name] = call(
            f"model.{name}", PARTS[name], section, dtype=dtype, norm=norm, **implied
        )
    for name in ("predictor", "prototypes"):
        if name in parts and "projector" not in parts:
            raise UsageError(f"model.{name} needs a section model.projector.")
    return assemble(parts, geometry)


def check_shared(section: str, fields: Mapping) -> None:
    """UsageError for a field that would set what all parts have in common."""
    for name, field in {"dtype": "model.precision", "norm": "model.norm"}.items():
        if name in fields:
            raise UsageError(f"{section}.{name} is set for all parts by {field}.")


def assemble(parts: Mapping, geometry: Geometry) -> Network:
    """The pure functions of a network made of linen modules, run in order."""

    def init(rng, images, **inputs):
        params, stats, outputs = {}, {}, {"images": images}
        for i, (name, part) in enumerate(parts.items()):
            key = jax.random.fold_in(rng, i)
            own_inputs = inputs.get(name, {})
            if callable(own_inputs):  # of the outputs so far
                own_inputs = own_inputs(outputs)
            new, variables = part.init_with_output(
                key, outputs, train=False, **own_inputs
            )
            outputs |= new
            params[name] = variables.pop("params")
            if variables:
                stats[name] = variables
        return params, stats

    def run(params, stats, outputs, names, *, train, rng=None, **inputs):
        new_stats = dict(stats)
        for i, (name, part) in enumerate(parts.items()):
            if name not in names:
                continue
            rngs = {} if rng is None else {"dropout": jax.random.fold_in(rng, i)}
            new, changed = part.apply(
                {"params": params[name], **stats.get(name, {})},
                outputs,
                train=train,
                rngs=rngs,
                mutable=list(stats.get(name, {})) if train else [],
                **inputs.get(name, {}),
            )
            outputs = outputs | new
            if changed:
                new_stats[name] = changed
        return outputs, new_stats

    def apply(params, stats, images, **options):
        return run(params, stats, {"images": images}, tuple(parts), **options)

    def encode(params, stats, images, **inputs):
        variables = {"params": params["encoder"], **stats.get("encoder", {})}
        outputs = {"images": images}
        return parts["encoder"].apply(variables, outputs, train=False, **inputs)

    def features(params, stats, images):
        return encode(params, stats, images)["features"]

    return Network(init, apply, run, tuple(parts), encode, features, geometry)
