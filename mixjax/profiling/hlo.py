"""Compiled code as data: the text that XLA prints of it (HLO), read line by line.

An operation stands in a computation, and a computation runs as often as the operations
that call it: the body of a loop once for every turn. The computations inside of fusions
and reductions are part of one operation and do not run on their own.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>\S+) \(.*\) -> .* \{$")
NAME = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>\S+) = ")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
OPERAND = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|[^\s,]+)"
)
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
COMMENT = re.compile(r"/\*.*?\*/")
# What an operation does with the computations it calls: it runs them one after another,
# or they describe what happens to the elements of its arrays.
RUNS = {"while", "conditional", "call", "async-start"}


class Shape(NamedTuple):
    """One array of a result."""

    kind: str  # such as bf16
    sizes: tuple[int, ...]
    layout: str  # such as 1,0:T(8,128)S(1)

    @property
    def bytes(self) -> int:
        """The size of the array."""
        return bits(self.kind) * math.prod(self.sizes) // 8

    @property
    def on_chip(self) -> bool:
        """Whether it lies in a memory of the chip's own, not in the device's memory."""
        return "S(1)" in self.layout


class Operation(NamedTuple):
    """One line of a computation."""

    name: str
    code: str  # such as fusion
    shapes: tuple[Shape, ...]  # of the result, those of a tuple in order
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses
    attributes: str  # the text after them
    root: bool
    result: str  # the text of the shapes

    def called(self) -> list[tuple[str, str]]:
        """(role, name) of the computations it calls, such as ("body", "region_1")."""
        return [
            (role, name)
            for role, names in CALLED.findall(self.attributes)
            for name in re.findall(r"[^\s,{}%]+", names)
        ]

    def attribute(self, name: str) -> str | None:
        """The text of one attribute, without its braces."""
        match = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^\s,]+))", self.attributes)
        return match and (match[1] if match[1] is not None else match[2])


class Module(NamedTuple):
    """Compiled code."""

    computations: dict[str, dict[str, Operation]]  # by name, in the code's order
    times: dict[str, int]  # how often each runs; 0: only as part of an operation
    frames: dict[int, list[tuple[str, str, int]]]  # number: (file, function, line),
    #                                                the innermost first

    def running(self) -> Iterator[tuple[Operation, dict[str, Operation], int]]:
        """(operation, its computation, how often it runs), of all that run."""
        for name, operations in self.computations.items():
            if self.times[name]:
                for operation in operations.values():
                    yield operation, operations, self.times[name]

    def within(self, operation: Operation) -> Iterator[tuple[Operation, dict]]:
        """The operations that one operation consists of, at any depth, and itself's."""
        for _, name in operation.called():
            inner = self.computations.get(name, {})
            for part in inner.values():
                yield part, inner
                yield from self.within(part)


def read(text: str) -> Module:
    """Reads the output of compiled.as_text()."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        begin = COMPUTATION.match(line)
        if begin:
            current = computations.setdefault(begin["name"], {})
            entry = begin["name"] if begin["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            operation = read_operation(line)
            if operation is not None:
                current[operation.name] = operation
    return Module(computations, count_runs(computations, entry), read_frames(text))


def read_operation(line: str) -> Operation | None:
    """One line of a computation; None for a line that is no operation."""
    line = COMMENT.sub("", line) if "/*" in line else line
    begin = NAME.match(line)
    if begin is None:
        return None
    rest = line[begin.end() :]
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opened = rest.find("(")
    closed = closing(rest, opened)
    arguments = rest[opened + 1 : closed]
    return Operation(
        name=begin["name"],
        code=rest[:opened],
        shapes=read_shapes(result),
        operands=tuple(OPERAND.findall(arguments)),
        arguments=arguments,
        attributes=rest[closed + 1 :],
        root=bool(begin["root"]),
        result=result,
    )


def closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def read_shapes(text: str) -> tuple[Shape, ...]:
    """ "(f32[8,4]{1,0}, u32[])" -> the shapes f32[8,4] and u32[]."""
    sizes = lambda numbers: tuple(int(n.strip("<=")) for n in numbers.split(",") if n)
    return tuple(
        Shape(kind, sizes(numbers), layout)
        for kind, numbers, layout in ARRAY.findall(text)
    )


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


def bits(kind: str) -> int:
    """The bits of one element of an HLO type: 16 for bf16, 8 for f8e4m3 and pred."""
    number = re.search(r"\d+", kind)
    if number:
        return int(number[0])
    return 8 if kind == "pred" else 0  # such as token


# --- how often ------------------------------------------------------------------------


def count_runs(computations: dict, entry: str) -> dict[str, int]:
    """How often each computation runs on its own in one execution of the code."""
    times: dict[str, int] = defaultdict(int)
    times[entry] = 1
    # In the text a computation precedes those that call it.
    for name in reversed(computations):
        if not times[name]:
            continue
        for operation in computations[name].values():
            if operation.code not in RUNS:
                continue
            turns = count_turns(operation, computations)
            for role, called in operation.called():
                loops = role in ("body", "condition")
                times[called] += times[name] * (turns if loops else 1)
    return times


def count_turns(operation: Operation, computations: dict) -> int:
    """The turns of a loop: noted by the compiler, or read from the loop's condition.

    The condition compares a counter that starts at 0 with a constant. A loop whose
    length the code does not tell counts once, as does every other operation.
    """
    if operation.code != "while":
        return 1
    noted = TURNS.search(operation.attributes)
    if noted:
        return int(noted[1])
    called = dict(operation.called())
    condition = computations.get(called.get("condition"), {})
    inner = [condition] + [
        computations.get(name, {})
        for part in condition.values()
        for _, name in part.called()
    ]
    parts = [part for operations in inner for part in operations.values()]
    compares = any("direction=LT" in part.attributes for part in parts)
    limits = {
        int(part.arguments)
        for part in parts
        if part.code == "constant" and re.fullmatch(r"[1-9]\d*", part.arguments)
    }
    return limits.pop() if compares and len(limits) == 1 else 1


# --- from which line of the source ----------------------------------------------------


def read_frames(text: str) -> dict[int, list[tuple[str, str, int]]]:
    """The stacks of (file, function, line) that the text lists before the code."""
    tables: dict[str, dict[int, str]] = {}
    table = None
    for line in text[: text.find("\nENTRY")].splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None:
            number, _, entry = line.partition(" ")
            if not number.isdigit():
                table = None
                continue
            table[int(number)] = entry
    number_of = lambda entry, field: int(re.search(rf"{field}=(\d+)", entry)[1])
    files, functions = tables.get("FileNames", {}), tables.get("FunctionNames", {})
    places = {
        key: (
            files[number_of(entry, "file_name_id")].strip('"'),
            functions[number_of(entry, "function_name_id")].strip('"'),
            number_of(entry, " line"),
        )
        for key, entry in tables.get("FileLocations", {}).items()
    }
    stack = tables.get("StackFrames", {})

    def chain(number):
        frames = []
        while number in stack:
            frames.append(places[number_of(stack[number], "file_location_id")])
            # Counted from 1, with 1 for no parent; frames themselves begin with 1 too.
            number = number_of(stack[number], "parent_frame_id") - 1
        return frames

    return {number: chain(number) for number in stack}


def frame_of(operation: Operation) -> int:
    """The number of an operation's stack of frames, 0 if it has none."""
    number = re.search(r"stack_frame_id=(\d+)", operation.attributes)
    return int(number[1]) if number else 0
