"""What compiled code sends between devices."""

import math
from typing import NamedTuple

from mixjax.profiling import hlo
from mixjax.profiling.hlo import Operation

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


class Collective(NamedTuple):
    """One operation of the code, with the results that a single device holds."""

    kind: str
    results: tuple[tuple[str, tuple[int, ...]], ...]  # (type, shape) of each
    times: int  # how often it runs; a loop of unknown length counts once

    @property
    def bytes(self) -> int:
        """The size of all results over all executions."""
        each = (hlo.bits(kind) * math.prod(shape) for kind, shape in self.results)
        return self.times * sum(each) // 8


def parse(text: str) -> list[Collective]:
    """All collectives of compiled code, in its order; text: compiled.as_text()."""
    return collectives(hlo.read(text))


def collectives(module: hlo.Module) -> list[Collective]:
    """All collectives of compiled code. Asynchronous ones count at their start.

    The compiler for TPUs splits one collective over several fusions, each of which
    names it again: what shares a channel counts once.
    """
    by_channel: dict[object, Collective] = {}
    for operation, _, times in module.running():
        for part in [operation, *(part for part, _ in module.within(operation))]:
            kind = part.code.removesuffix("-start")
            if kind in KINDS:
                channel = part.attribute("channel_id") or id(part)
                before = by_channel.get(channel)
                if before is None or before.times < times:
                    by_channel[channel] = Collective(kind, results(part), times)
    return list(by_channel.values())


def results(operation: Operation) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(type, shape) of each array that a collective makes."""
    text = operation.result
    if operation.code.endswith("-start") and operation.code != "all-reduce-start":
        text = hlo.elements(text)[1]  # (operands, results, ...)
    return tuple((shape.kind, shape.sizes) for shape in hlo.read_shapes(text))
