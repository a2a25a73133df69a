"""Arithmetic of a function, counted in its jaxpr, and what devices could do at most.

The count holds matrix products and convolutions, two operations a multiply-add, and a
loop's body as often as it runs (XLA's own cost analysis counts it once).
"""

import math

import jax

# Dense bfloat16 operations per second, from the makers' data sheets, by device_kind.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
}


def peak(device) -> float | None:
    """Peak bfloat16 operations per second of one device, None where not known."""
    kind = device.device_kind
    known = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(known, key=len)] if known else None


def count(function, *args) -> float:
    """Matrix operations of function(*args); args may be shapes."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        times = (
            equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        )
        if equation.primitive.name == "dot_general":
            total += _dot(equation)
        elif equation.primitive.name == "conv_general_dilated":
            total += _convolution(equation)
        total += times * sum(_count(inner) for inner in _inside(equation.params))
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
    per_output = math.prod(kernel) / out_channels
    return 2.0 * per_output * math.prod(equation.outvars[0].aval.shape)
