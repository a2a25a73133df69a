"""Rules between the paths of our arrays and the names of torch's tensors.

A rule names one layer on both sides, "encoder/blocks_{i}/norm1" and "blocks.{i}.norm1".
Its kind lists the tensors of such a layer and how their axes differ. Numbers are equal
on both sides, or one higher on theirs ("{i+1}"). A path that ends in mean or var is
that of a batch statistic, any other that of a parameter. The same rules are read in
both directions: to_theirs and to_ours.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError

Arrays = dict[str, np.ndarray]
STATISTICS = ("/mean", "/var")


class Leaf(NamedTuple):
    """A tensor of a layer: how its name ends on both sides, and how axes are moved."""

    ours: str
    theirs: str
    export: Callable  # (our array, section of the encoder) -> theirs
    load: Callable  # their array -> ours


class Rule(NamedTuple):
    """A layer on both sides.

    theirs: several names if they split our tensor along its last axis, such as
    queries, keys and values.
    """

    ours: str
    theirs: str | tuple[str, ...]
    kind: tuple[Leaf, ...]


def same(array, *_):
    return array


def transposed(array, *_):
    return array.T


def export_patches(array, encoder: Mapping):
    """A linear layer on flat patches as a convolution: [p p C, D] -> [D, C, p, p].

    A patch is flattened by row, column, channel.
    """
    p, c = encoder["patch"], encoder["channels"]
    return array.reshape(p, p, c, -1).transpose(3, 2, 0, 1)


def load_patches(array):
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


BIAS = Leaf("/bias", ".bias", same, same)
PLAIN = (Leaf("", "", same, same),)  # the rule names the tensor itself
WEIGHT = (Leaf("/kernel", ".weight", transposed, transposed),)  # linear, without bias
LINEAR = (*WEIGHT, BIAS)
NORM = (Leaf("/scale", ".weight", same, same), BIAS)
STATS = (
    Leaf("/mean", ".running_mean", same, same),
    Leaf("/var", ".running_var", same, same),
)
BATCH_NORM = (*NORM, *STATS)
PATCHES = (Leaf("/kernel", ".weight", export_patches, load_patches), BIAS)
CONV = (
    Leaf(
        "/kernel",
        ".weight",
        lambda x, _: x.transpose(3, 2, 0, 1),  # [h, w, in, out] -> [out, in, h, w]
        lambda x: x.transpose(2, 3, 1, 0),
    ),
)
POINTS = (  # a linear layer at every position is their 1x1 convolution
    Leaf(
        "/kernel",
        ".weight",
        lambda x, _: x.T[..., None, None],
        lambda x: x[..., 0, 0].T,
    ),
    BIAS,
)


def beneath(prefix: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The same rules with `prefix` before all of their names."""

    def under(name):
        return prefix + name if isinstance(name, str) else tuple(map(under, name))

    return tuple(rule._replace(theirs=under(rule.theirs)) for rule in rules)


# --- names with numbers ----------------------------------------------------------


def pattern(template: str) -> re.Pattern:
    """ "blocks.{i}.norm1" as a regular expression with groups."""
    text = re.sub(r"\{(\w)(\+1)?\}", r"<\1>", template)
    text = re.sub(r"<(\w)>", r"(?P<\1>[0-9]+)", re.escape(text))
    return re.compile(text)


def numbers(template: str, name: str) -> dict[str, int] | None:
    """The numbers of `name`, None if it is not of that form."""
    match = pattern_of(template).fullmatch(name)
    if match is None:
        return None
    values = {
        k: int(v) - (f"{{{k}+1}}" in template) for k, v in match.groupdict().items()
    }
    # "res1" would be layer 0 of {i+1}, but "res0" layer -1: not of that form.
    return values if min(values.values(), default=0) >= 0 else None


def filled(template: str, values: Mapping[str, int]) -> str:
    """The template with its numbers filled in."""
    fill = lambda m: str(values[m[1]] + bool(m[2]))
    return re.sub(r"\{(\w)(\+1)?\}", fill, template)


PATTERNS: dict[str, re.Pattern] = {}  # every name is matched with every rule


def pattern_of(template: str) -> re.Pattern:
    """`pattern`, compiled once for each template."""
    if template not in PATTERNS:
        PATTERNS[template] = pattern(template)
    return PATTERNS[template]


def names_of(rule: Rule) -> tuple[str, ...]:
    """Their names of the layer, as a tuple even if there is one."""
    return (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs


# --- export -------------------------------------------------------------------------


def to_theirs(weights: Arrays, rules: Sequence[Rule], encoder: Mapping) -> Arrays:
    """{their name: array} of {our path: array}.

    encoder: the section of config.model. UsageError names paths without a rule.
    """
    named, unnamed = {}, []
    for path, array in weights.items():
        tensors = _export(path, array, rules, encoder)
        named |= tensors
        if not tensors:
            unnamed.append(path)
    if unnamed:
        raise UsageError(
            f"the target has no names for {len(unnamed)} tensors: "
            f"{', '.join(unnamed[:4])}."
        )
    # safetensors writes the memory of an array, so transposed views must be copied.
    return {k: np.ascontiguousarray(v) for k, v in named.items()}


def _export(path: str, array, rules: Sequence[Rule], encoder: Mapping) -> Arrays:
    """{their name: array} of one of our arrays, {} if no rule names it."""
    for rule in rules:
        for leaf in rule.kind:
            values = numbers(rule.ours + leaf.ours, path)
            if values is None:
                continue
            names = [filled(name + leaf.theirs, values) for name in names_of(rule)]
            parts = np.split(array, len(names), axis=-1)  # q, k, v of one matrix
            pairs = zip(names, parts, strict=True)
            return {name: leaf.export(part, encoder) for name, part in pairs}
    return {}


# --- load --------------------------------------------------------------------------


class Place(NamedTuple):
    """Where their tensor belongs: part `part` of `parts` along our last axis."""

    path: str
    part: int
    parts: int
    load: Callable


def place_of(name: str, rules: Sequence[Rule]) -> Place | None:
    """The place of their tensor in our arrays; None if no rule names it."""
    for rule in rules:
        names = names_of(rule)
        for part, theirs in enumerate(names):
            for leaf in rule.kind:
                values = numbers(theirs + leaf.theirs, name)
                if values is not None:
                    path = filled(rule.ours + leaf.ours, values)
                    return Place(path, part, len(names), leaf.load)
    return None


def to_ours(named: Arrays, rules: Sequence[Rule]) -> Arrays:
    """{our path: array} of {their name: array}; names without a rule are left out.

    UsageError if a tensor has the wrong number of axes, or if a part of one of our
    arrays is missing.
    """
    pieces: dict[str, dict] = {}
    for name, array in named.items():
        place = place_of(name, rules)
        if place is None:
            continue
        try:
            converted = place.load(array)
        except (ValueError, IndexError) as error:
            shape = tuple(array.shape)
            raise UsageError(
                f"{name} of shape {shape} does not fit: {error}."
            ) from error
        pieces.setdefault(place.path, {})[place.part] = (converted, place.parts)
    ours = {}
    for path, parts in pieces.items():
        if len(parts) < next(iter(parts.values()))[1]:
            raise UsageError(f"only a part of {path} is there.")
        arrays = [parts[i][0] for i in sorted(parts)]
        ours[path] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, -1)
    return ours
