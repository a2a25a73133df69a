"""What a step costs on chips that are not there, from the code compiled for them.

Time is estimated in two ways, and neither is a measurement. The roofline takes for
every operation the longer of its multiplications at the chip's peak and its bytes at
the bandwidth of the memory: no real step is faster. The cycles are the TPU compiler's
own estimate of every operation; it is far from the bandwidth for simple operations on
large arrays, and it prices sorts, gathers, scatters and custom kernels at zero. What is
sent over the links is counted apart from both, since it may overlap with computation.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from mixjax.chips.catalog import Chip
from mixjax.chips.targets import Target
from mixjax.profiling import collectives, costs, hlo
from mixjax.profiling.collectives import Collective

NEEDED = re.compile(r"\(([\d.]+)([KMG])\) exceeds|Used ([\d.]+)([KMG]) of")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
PLACES = 5


class Place(NamedTuple):
    """A line of the source, and its share of the time of a step."""

    share: float
    line: str
    kinds: str  # of its operations, that with the largest share first


class Estimate(NamedTuple):
    """What a step costs on each device of a target."""

    peak_memory: int  # bytes, of the compiler's plan
    cycles: int  # 0: the compiler estimates none
    bytes: int  # read from and written to the device's memory
    flops: float  # of products and convolutions, those computed twice included
    sent: int  # bytes that all collectives make
    roofline_seconds: float
    cycles_seconds: float | None
    links_seconds: float
    places: tuple[Place, ...]

    @property
    def seconds(self) -> float:
        """The better founded of the estimates: cycles, where the compiler has them."""
        return self.cycles_seconds or self.roofline_seconds


def estimate(code: str, memory, target: Target) -> Estimate:
    """The cost of compiled code; memory: its memory analysis."""
    module, chip = hlo.read(code), target.chip
    operations = costs.costs(module)
    cycles = sum(cost.cycles for cost in operations)
    step_collectives = collectives.collectives(module)
    weigh = (lambda cost: cost.cycles / chip.clock) if cycles else None
    return Estimate(
        peak_memory=peak_memory(memory),
        cycles=cycles,
        bytes=sum(cost.bytes for cost in operations),
        flops=sum(cost.flops for cost in operations),
        sent=sum(collective.bytes for collective in step_collectives),
        roofline_seconds=sum(roofline(cost, chip) for cost in operations),
        cycles_seconds=cycles / chip.clock if cycles else None,
        links_seconds=sum(link_seconds(one, target) for one in step_collectives),
        places=places(operations, weigh or (lambda cost: roofline(cost, chip))),
    )


def peak_memory(memory) -> int:
    """The most bytes that a step holds at a time, its arguments included."""
    planned = getattr(memory, "peak_memory_in_bytes", 0)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return planned or held


def needed_memory(error: Exception) -> int | None:
    """The bytes that a step needs, from the compiler's refusal; None if it is another.

    The compiler for TPUs refuses a step that does not fit.
    """
    text = str(error)
    match = NEEDED.search(text)
    if "RESOURCE_EXHAUSTED" not in text or match is None:
        return None
    number, unit = match[1] or match[3], match[2] or match[4]
    return int(float(number) * UNITS[unit])


def roofline(cost: costs.Cost, chip: Chip) -> float:
    """Seconds that an operation takes at least."""
    peak = chip.peak * (chip.float32_products if cost.float32 else 1.0)
    return max(cost.flops / peak, cost.bytes / chip.bandwidth)


def link_seconds(collective: Collective, target: Target) -> float:
    """Seconds that a collective takes at least, in rings over all devices."""
    chip, count = target.chip, target.count
    if count == 1:
        return 0.0
    share = (count - 1) / count
    passes = {
        "all-reduce": 2 * share,  # scattered sums, then gathered
        "all-gather": share,
        "all-to-all": share,
        "ragged-all-to-all": share,
        "reduce-scatter": count - 1,  # the results are parts of what is sent
    }
    seconds = collective.bytes * passes.get(collective.kind, 1.0) / chip.links
    if target.slices > 1:
        # Between the slices, each chip of a slice sends its part of the array.
        part = collective.bytes * target.slices / count
        crossed = 2 * (target.slices - 1) / target.slices
        seconds += part * crossed / chip.between
    return seconds


def places(operations: list[costs.Cost], weigh) -> tuple[Place, ...]:
    """The lines of the source where most of the time goes; weigh: cost -> seconds."""
    by_line: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for cost in operations:
        by_line[cost.place][cost.kind] += weigh(cost)
    total = sum(sum(kinds.values()) for kinds in by_line.values()) or 1.0
    order = sorted(by_line.items(), key=lambda item: -sum(item[1].values()))
    return tuple(
        Place(
            share=sum(kinds.values()) / total,
            line=line,
            kinds=", ".join(sorted(kinds, key=lambda kind: -kinds[kind])[:2]),
        )
        for line, kinds in order[:PLACES]
    )
