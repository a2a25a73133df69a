"""The matrix operations of a function, counted in its jaxpr, and the peak of devices.

Counted are the matrix products and convolutions that the results need, with two
operations per multiply-add, and the body of a scan as often as it runs (XLA's own cost
analysis counts it once). Of a condition the most expensive branch counts, of a while
loop one iteration.
"""

import math

import jax
from jax.interpreters import partial_eval

# Dense bfloat16 operations per second, from the vendors' data sheets, by device_kind.
# jax shows a TPU v3 or TPU7x chip as two devices; these are the values of half a chip.
PEAKS = {
    "NVIDIA B200": 2250e12,
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
    """Peak bfloat16 operations per second of one device, None if unknown.

    The kind of a GPU may continue after the name (A100-SXM4-80GB), but not within a
    word (an L40 is not an L4), and it must not be a partition of a GPU (MIG).
    """
    kind = device.device_kind
    if kind in PEAKS:
        return PEAKS[kind]
    longer = [n for n in PEAKS if kind.startswith((n + "-", n + " ")) and "NV" in n]
    return PEAKS[max(longer, key=len)] if longer and "MIG" not in kind else None


def count(function, *args) -> float:
    """Matrix operations of function(*args); args may be shapes."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # The compiler removes what no result needs, such as the gradient of the images.
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
    """The jaxprs among the parameters of an equation, such as the body of a loop."""
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
    # The gradient of a strided convolution inserts zeros, which cost nothing.
    zeros = math.prod(equation.params["lhs_dilation"])
    per_output = math.prod(kernel) / out_channels / zeros
    return 2.0 * per_output * math.prod(equation.outvars[0].aval.shape)
