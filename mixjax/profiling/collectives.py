"""What compiled code sends between devices, parsed from its text (HLO)."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = "all-gather all-reduce all-to-all collective-broadcast collective-permute"
KINDS += " ragged-all-to-all reduce-scatter"
OPERATION = re.compile(
    r'^\s*(?:ROOT )?\S+ = (?P<result>[^"%]+?) '
    rf"(?P<kind>{'|'.join(KINDS.split())})(?P<start>-start)?\("
)
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")  # bf16[8,64], also inside of a tuple
COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>\S+) \(.*\) -> .* \{$")
CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|[^\s,]+)"
)
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One operation of the code, with the results that a single device holds."""

    kind: str
    results: tuple[tuple[str, tuple[int, ...]], ...]  # (type, shape) of each
    times: int  # how often it runs; a loop of unknown length counts once

    @property
    def bytes(self) -> int:
        """The size of all results over all executions."""
        each = (bits(kind) * math.prod(shape) for kind, shape in self.results)
        return self.times * sum(each) // 8


def parse(text: str) -> list[Collective]:
    """All collectives of compiled code, in its order.

    text: the output of compiled.as_text(). Asynchronous ones count at their start.
    """
    collectives, times, name = [], calls(text), ""
    for line in text.splitlines():
        begin = COMPUTATION.match(line)
        name = begin["name"] if begin else name
        match = OPERATION.match(line)
        if match:
            result = match["result"]
            if match["start"] and match["kind"] != "all-reduce":
                result = elements(result)[1]  # (operands, results, ...)
            collectives.append(Collective(match["kind"], arrays(result), times[name]))
    return collectives


def calls(text: str) -> dict[str, int]:
    """How often each computation runs in one execution of the compiled code.

    In the text, a computation precedes those that call it.
    """
    callers, order, name = defaultdict(list), [], ""
    times: dict[str, int] = defaultdict(int)
    for line in text.splitlines():
        begin = COMPUTATION.match(line)
        if begin:
            name = begin["name"]
            order.append(name)
            times[name] = 1 if begin["entry"] else 0
            continue
        turns = TURNS.search(line)
        for what, names in CALLED.findall(line):
            many = int(turns[1]) if turns and what in ("body", "condition") else 1
            for called in re.findall(r"[^\s,{}%]+", names):
                callers[called].append((name, many))
    for name in reversed(order):
        times[name] += sum(times[caller] * many for caller, many in callers[name])
    return times


def elements(tuple_text: str) -> list[str]:
    """ "(a, (b, c{1,0}))" -> ["a", "(b, c{1,0})"]."""
    parts, depth = [""], 0
    for letter in tuple_text.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def arrays(shape_text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """ "(f32[8,4]{1,0}, u32[])" -> (("f32", (8, 4)), ("u32", ()))."""
    sizes = lambda text: tuple(int(n.strip("<=")) for n in text.split(",") if n)
    return tuple((kind, sizes(text)) for kind, text in ARRAY.findall(shape_text))


def bits(kind: str) -> int:
    """The bits of one element of an HLO type: 16 for bf16, 8 for f8e4m3 and pred."""
    number = re.search(r"\d+", kind)
    if number:
        return int(number[0])
    return 8 if kind == "pred" else 0  # such as token
