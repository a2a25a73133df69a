"""Recognises whose names a file has: the dialect that fits most of its tensors."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mixjax.errors import UsageError
from mixjax.export import families
from mixjax.export.name_rules import Arrays, Rule, place_of, to_ours


class Dialect(NamedTuple):
    """One project's names of one kind of encoder and of the heads on it."""

    title: str
    encoder: str  # a file of mixjax/models
    rules: tuple[Rule, ...]


# Wrappers that projects save around the network, in any order and number.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "encoder_q.")
PREFIXES += ("base_encoder.", "student.", "net.")
# Buffers that follow from the configuration, and parts that have no use here.
UNUSED = re.compile(
    r"(.*\.)?(num_batches_tracked|relative_position_index|attn_mask|queue|queue_ptr)"
    r"|(.*\.)?(encoder_k|momentum_encoder|teacher|projection_head|prototypes|predictor"
    r"|pooler|momentum|head_dist)\..*"
)
MOST_PREFIXES = 200  # combinations that are tried


def dialects() -> list[Dialect]:
    """The dialects of all families."""
    return [
        Dialect(title, name, rules)
        for name in families.names()
        for title, rules in families.find(name).dialects
    ]


def without_prefixes(named: Arrays) -> Iterator[Arrays]:
    """The tensors under their names, then those with a prefix, under what follows."""
    waiting = [named]
    for _ in range(MOST_PREFIXES):
        if not waiting:
            return
        now = waiting.pop(0)
        yield now
        for prefix in PREFIXES:
            inside = [name for name in now if name.startswith(prefix)]
            if inside:
                waiting.append({name[len(prefix) :]: now[name] for name in inside})


def recognise(named: Arrays, source: str) -> tuple[Dialect, Arrays]:
    """(the dialect that names most of the tensors, the tensors under its names).

    Of two that fit equally well, the first is chosen. source: the file's name in
    messages. UsageError if none fits, or if the best does not know all the tensors.
    """
    candidates = dialects()
    best, most, chosen = None, 0, named
    for tensors in without_prefixes(named):
        for dialect in candidates:
            known = sum(place_of(name, dialect.rules) is not None for name in tensors)
            if known > most:
                best, most, chosen = dialect, known, tensors
    if best is None:
        raise UsageError(
            f"{source}: none of its {len(named)} tensors has a known name (of timm, "
            f"torchvision, MAE, MoCo, SimMIM, detectron2 or Hugging Face); the first "
            f"are {', '.join(sorted(named)[:3])}."
        )
    unknown = [
        name
        for name in chosen
        if place_of(name, best.rules) is None and not UNUSED.fullmatch(name)
    ]
    if unknown:
        raise UsageError(
            f"{source} looks like {best.title}, but {len(unknown)} of its tensors "
            f"belong to another network: {', '.join(unknown[:4])}."
        )
    return best, chosen


def ours(named: Arrays, dialect: Dialect, source: str) -> Arrays:
    """{our path: array} of a dialect's tensors; UsageError names the file."""
    try:
        return to_ours(named, dialect.rules)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
