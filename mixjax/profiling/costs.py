"""What each operation of compiled code costs: cycles, bytes moved, multiplications.

Cycles are the estimate that the TPU compiler writes into the code; it prices sorts,
gathers, scatters and custom kernels at zero. The compiler for GPUs writes none. Bytes
are what an operation reads from the device's memory and writes to it; of an operand
that it slices, only the slices count. Multiplications are two operations for each
multiply-add of matrix products and convolutions.
"""

import json
import math
import re
from typing import NamedTuple

from mixjax.profiling import hlo
from mixjax.profiling.collectives import KINDS
from mixjax.profiling.hlo import Module, Operation

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Operations that move nothing themselves.
FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "copy-done",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "tuple",
    "while",
}
SLICES = {"dynamic-slice", "gather", "slice"}
PRODUCTS = {"convolution", "dot"}
MOVES = {"copy", "copy-start", "transpose"}  # change the layout, not the values


class Cost(NamedTuple):
    """What one operation costs in all its runs."""

    operation: Operation
    times: int
    cycles: int
    bytes: int
    flops: float
    float32: bool  # whether its products multiply float32 numbers
    kind: str  # "product", "copy", "sort", "collective", "custom kernel" or "other"
    stack: list[tuple[str, str, int]]  # (file, function, line), the innermost first

    @property
    def place(self) -> str:
        """The innermost line of this package that the operation comes from."""
        for file, _, line in self.stack:
            if "/mixjax/" in file:
                return f"mixjax/{file.rpartition('/mixjax/')[2]}:{line}"
        return "the compiler's own"


def costs(module: Module) -> list[Cost]:
    """The cost of every operation that runs."""
    return [
        Cost(
            operation=operation,
            times=times,
            cycles=times * cycles(operation),
            bytes=times * moved(module, operation, around),
            flops=times * flops(module, operation, around),
            float32=multiplies_float32(module, operation, around),
            kind=kind(module, operation),
            stack=module.frames.get(hlo.frame_of(operation), []),
        )
        for operation, around, times in module.running()
    ]


def cycles(operation: Operation) -> int:
    """The TPU compiler's estimate, 0 where there is none."""
    estimate = CYCLES.search(operation.attributes)
    return int(estimate[1]) if estimate else 0


def kind(module: Module, operation: Operation) -> str:
    """What an operation mainly is; see Cost."""
    codes = {operation.code} | {part.code for part, _ in module.within(operation)}
    if any(code.removesuffix("-start") in KINDS for code in codes):
        return "collective"
    target = custom_target(operation)
    if codes & PRODUCTS or "gemm" in target or "cudnn" in target:
        return "product"
    if "sort" in codes or "TopK" in target:
        return "sort"
    if operation.code == "custom-call":
        return "custom kernel"
    arithmetic = codes - MOVES - FREE - {"fusion", "copy-done"}
    return "other" if arithmetic or not codes & MOVES else "copy"


def custom_target(operation: Operation) -> str:
    """The name of the function that a custom call runs; "" for other operations."""
    return (operation.attribute("custom_call_target") or "").strip('"')


# --- bytes ----------------------------------------------------------------------------


def moved(module: Module, operation: Operation, around: dict) -> int:
    """Bytes that one run reads from and writes to the device's memory."""
    if operation.code in FREE or operation.code.endswith("-done"):
        return 0
    written = size(operation.shapes)
    if operation.code.endswith("-start"):
        # The result names the operands again, before or after what is written.
        return max(
            written, sum(size(around[name].shapes) for name in operation.operands)
        )
    if operation.code in SLICES:
        return 2 * written
    if operation.code == "dynamic-update-slice":
        return 2 * size(around[operation.operands[1]].shapes)
    if operation.code != "fusion":
        return written + sum(size(around[name].shapes) for name in operation.operands)
    inner = module.computations[dict(operation.called())["calls"]]
    read = sum(
        used(inner, number, around[name].shapes)
        for number, name in enumerate(operation.operands)
    )
    for part in inner.values():
        if part.code == "dynamic-update-slice" and part.shapes[0] in operation.shapes:
            # The result is the operand's own memory: only the slice is written.
            written -= size(part.shapes) - size(inner[part.operands[1]].shapes)
    return read + max(written, 0)


def used(inner: dict, number: int, shapes) -> int:
    """Bytes that a fusion reads of its operand `number`."""
    whole = size(shapes)
    parameters = [
        part
        for part in inner.values()
        if part.code == "parameter" and part.arguments == str(number)
    ]
    if not parameters:
        return whole
    name, read = parameters[0].name, 0
    for part in inner.values():
        if name not in part.operands:
            continue
        if part.code in SLICES and part.operands[0] == name:
            read += size(part.shapes)
        elif part.code != "dynamic-update-slice" or part.operands[0] != name:
            return whole
    return min(read, whole)


def size(shapes) -> int:
    """Bytes of the arrays that lie in the device's memory."""
    return sum(shape.bytes for shape in shapes if not shape.on_chip)


# --- multiplications ------------------------------------------------------------------


def flops(module: Module, operation: Operation, around: dict) -> float:
    """Operations of the products in one run of an operation."""
    if operation.code in hlo.RUNS - {"async-start"}:
        return 0.0  # what they run is counted on its own
    total = product(operation, around)
    return total + sum(product(part, inner) for part, inner in module.within(operation))


def multiplies_float32(module: Module, operation: Operation, around: dict) -> bool:
    """Whether an operand of any product in an operation is float32."""
    parts = [(operation, around), *module.within(operation)]
    return any(
        around[name].shapes[0].kind == "f32"
        for part, around in parts
        if part.code in PRODUCTS or "__cu" in custom_target(part)
        for name in part.operands[:2]
    )


def product(operation: Operation, around: dict) -> float:
    """Operations of a matrix product or convolution, 0 of anything else."""
    if operation.code == "dot":
        left = around[operation.operands[0]].shapes[0].sizes
        axes = operation.attribute("lhs_contracting_dims") or ""
        depth = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
        return 2.0 * depth * math.prod(operation.shapes[0].sizes)
    target = custom_target(operation)
    if operation.code == "convolution" or target.startswith("__cudnn$conv"):
        return convolution(operation, around, target)
    if "gemm" in target or "matmul" in target:
        return gemm(operation, around)
    return 0.0


def convolution(operation: Operation, around: dict, target: str = "") -> float:
    """Operations of a convolution, of XLA's own or cuDNN's."""
    left, right = (around[name].shapes[0].sizes for name in operation.operands[:2])
    out = operation.shapes[0].sizes
    if target == "__cudnn$convBackwardInput":
        left, out = out, left  # an operand is the gradient of the result
    if target == "__cudnn$convBackwardFilter":
        right, out = out, right
    labels = operation.attribute("dim_labels")
    kernel_labels = re.split(r"[_>]|->", labels)[1].removesuffix("-")
    features = right[kernel_labels.index("o")]
    zeros = 1
    dilated = re.search(r"lhs_dilate=([\dx]+)", operation.attribute("window") or "")
    if dilated:
        # The gradient of a strided convolution inserts zeros, which cost nothing.
        zeros = math.prod(int(n) for n in dilated[1].split("x"))
    return 2.0 * math.prod(out) * math.prod(right) / features / zeros


def gemm(operation: Operation, around: dict) -> float:
    """Operations of a product that a library for GPUs computes."""
    config = re.search(r"backend_config=(\{.*\})", operation.attributes)
    settings = json.loads(config[1]).get("gemm_backend_config", {}) if config else {}
    axes = settings.get("dot_dimension_numbers", {}).get("lhs_contracting_dimensions")
    if not axes:
        return 0.0
    left = around[operation.operands[0]].shapes[0].sizes
    depth = math.prod(left[int(axis)] for axis in axes)
    return 2.0 * depth * math.prod(operation.shapes[0].sizes)
