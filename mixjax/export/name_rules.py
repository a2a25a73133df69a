"""Rules (ours, theirs, how) between paths of our trees and names of torch's modules.

A rule names a layer, "encoder/blocks_{i}/norm1" and "blocks.{i}.norm1", and its kind
the tensors in it and how they are laid out. Numbers are the same on both sides, or one
apart ("{i+1}"). A path is that of a parameter or, where it ends in mean or var, of a
batch statistic. One list serves both directions.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mixjax.errors import UsageError

Arrays = dict[str, np.ndarray]
STATISTICS = ("/mean", "/var")


class Leaf(NamedTuple):
    """A tensor of a layer: its ending here and there, and how it turns over."""

    ours: str
    theirs: str
    give: Callable  # (array, section of the encoder) -> theirs
    take: Callable  # theirs -> array


class Rule(NamedTuple):
    """A layer here and there; `theirs` is several names where we have one tensor."""

    ours: str
    theirs: str | tuple[str, ...]
    kind: tuple[Leaf, ...]


def same(array, *_):
    return array


def turned(array, *_):
    return array.T


def patches_out(array, encoder: Mapping):
    """[p p c, D], a patch by row, column, channel -> [D, c, p, p]."""
    p, c = encoder["patch"], encoder["channels"]
    return array.reshape(p, p, c, -1).transpose(3, 2, 0, 1)


def patches_in(array):
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


BIAS = Leaf("/bias", ".bias", same, same)
PLAIN = (Leaf("", "", same, same),)
WEIGHT = (Leaf("/kernel", ".weight", turned, turned),)  # linear, without bias
LINEAR = (*WEIGHT, BIAS)
NORM = (Leaf("/scale", ".weight", same, same), BIAS)
STATS = (
    Leaf("/mean", ".running_mean", same, same),
    Leaf("/var", ".running_var", same, same),
)
BATCH_NORM = (*NORM, *STATS)
PATCHES = (Leaf("/kernel", ".weight", patches_out, patches_in), BIAS)
CONV = (
    Leaf(
        "/kernel",
        ".weight",
        lambda x, _: x.transpose(3, 2, 0, 1),
        lambda x: x.transpose(2, 3, 1, 0),
    ),
)
POINTS = (  # a linear layer at every place, which is a 1x1 convolution there
    Leaf(
        "/kernel",
        ".weight",
        lambda x, _: x.T[..., None, None],
        lambda x: x[..., 0, 0].T,
    ),
    BIAS,
)


def beneath(prefix: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The same rules where all of their names begin with `prefix`."""

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
    found = pattern_of(template).fullmatch(name)
    if found is None:
        return None
    given = {
        k: int(v) - (f"{{{k}+1}}" in template) for k, v in found.groupdict().items()
    }
    return given if min(given.values(), default=0) >= 0 else None


def filled(template: str, given: Mapping[str, int]) -> str:
    """The template with its numbers put in."""
    put = lambda m: str(given[m[1]] + bool(m[2]))
    return re.sub(r"\{(\w)(\+1)?\}", put, template)


PATTERNS: dict[str, re.Pattern] = {}


def pattern_of(template: str) -> re.Pattern:
    if template not in PATTERNS:
        PATTERNS[template] = pattern(template)
    return PATTERNS[template]


def several(rule: Rule) -> tuple[str, ...]:
    return (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs


# --- out -------------------------------------------------------------------------


def to_theirs(weights: Arrays, rules: Sequence[Rule], encoder: Mapping) -> Arrays:
    """{their name: array} of {our path: array}.

    encoder: the section of config.model. UsageError names paths without a rule.
    """
    named, left = {}, []
    for path, array in weights.items():
        found = _out(path, array, rules, encoder)
        named |= found
        if not found:
            left.append(path)
    if left:
        raise UsageError(
            f"{len(left)} tensors have no name there: {', '.join(left[:4])}."
        )
    return {k: np.ascontiguousarray(v) for k, v in named.items()}


def _out(path: str, array, rules: Sequence[Rule], encoder: Mapping) -> Arrays:
    for rule in rules:
        for leaf in rule.kind:
            given = numbers(rule.ours + leaf.ours, path)
            if given is None:
                continue
            names = [filled(name + leaf.theirs, given) for name in several(rule)]
            parts = np.split(array, len(names), axis=-1)  # q, k, v of one matrix
            return {n: leaf.give(x, encoder) for n, x in zip(names, parts, strict=True)}
    return {}


# --- in --------------------------------------------------------------------------


class Place(NamedTuple):
    """Where one of their tensors goes: part `part` of `parts` along the last axis."""

    path: str
    part: int
    parts: int
    take: Callable


def place_of(name: str, rules: Sequence[Rule]) -> Place | None:
    """Where their tensor goes here; None if no rule names it."""
    for rule in rules:
        names = several(rule)
        for part, theirs in enumerate(names):
            for leaf in rule.kind:
                given = numbers(theirs + leaf.theirs, name)
                if given is not None:
                    path = filled(rule.ours + leaf.ours, given)
                    return Place(path, part, len(names), leaf.take)
    return None


def to_ours(named: Arrays, rules: Sequence[Rule]) -> Arrays:
    """{our path: array} of {their name: array}; names without a rule are left out.

    UsageError if a tensor has too few axes, or if a part of one of ours is missing.
    """
    pieces: dict[str, dict] = {}
    for name, array in named.items():
        place = place_of(name, rules)
        if place is None:
            continue
        try:
            turned_over = place.take(array)
        except (ValueError, IndexError) as error:
            shape = tuple(array.shape)
            raise UsageError(
                f"{name} of shape {shape} does not fit: {error}."
            ) from error
        pieces.setdefault(place.path, {})[place.part] = (turned_over, place.parts)
    found = {}
    for path, parts in pieces.items():
        if len(parts) < next(iter(parts.values()))[1]:
            raise UsageError(f"{path} is there in part only.")
        arrays = [parts[i][0] for i in sorted(parts)]
        found[path] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, -1)
    return found
