"""Arithmetic of a function, counted in its jaxpr, and what devices could do at most.

The count holds matrix products and convolutions that the results need, two operations
a multiply-add, and the body of a scan as often as it runs (XLA's own cost analysis
counts it once). Of the branches of a condition the dearest counts, of a while loop
one turn.
"""

import math

import jax
from jax.interpreters import partial_eval

# Dense bfloat16 operations per second, from the makers' data sheets, by device_kind.
# jax shows a chip of TPU v3 and of TPU7x as two devices; these are halves of a chip.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
}


def peak(device) -> float | None:
    """Peak bfloat16 operations per second of one device, None where not known.

    A GPU's kind may go on after the name (A100-SXM4-80GB), but not as another word's
    beginning (L40 is no L4), nor be a part of a GPU.
    """
    kind = device.device_kind
    if kind in PEAKS:
        return PEAKS[kind]
    longer = [n for n in PEAKS if kind.startswith((n + "-", n + " ")) and "NV" in n]
    return PEAKS[max(longer, key=len)] if longer and "MIG" not in kind else None


def count(function, *args) -> float:
    """Matrix operations of function(*args); args may be shapes."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # The compiler drops what no result needs, such as the gradient of the images.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inside = [_count(inner) for inner in _inside(equation.params)]
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(inside)
        else:
            total += sum(inside) * (equation.params["length"] if name == "scan" else 1)
    return total


def _inside(params: dict):
    """The jaxprs among an equation's parameters, such as the body of a loop."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation) -> float:
    kernel = equation.invars[1].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # The gradient of a stride sees its input with zeros between; they cost nothing.
    zeros = math.prod(equation.params["lhs_dilation"])
    per_output = math.prod(kernel) / out_channels / zeros
    return 2.0 * per_output * math.prod(equation.outvars[0].aval.shape)
