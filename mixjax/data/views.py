"""The language of views: "decode_crop(224, scale=(.2, 1)) | flip | normalize".

A view is a line of operations, left to right. The leading ones may be host
operations, which run in the input pipeline and hand over uint8; the others run on the
accelerator inside the train step. Arguments are Python literals.
"""

import ast
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.data import device_ops, host_ops
from mixjax.errors import UsageError, nearest

Array = jax.Array


class View(NamedTuple):
    """A parsed view."""

    text: str
    start: str  # the text of the host operation, "" if there is none
    host: Callable | None  # (picture, rng) -> uint8 [H, W, C]
    device: Callable  # (key, uint8 [H, W, C]) -> float32 [h, w, C]
    mean: tuple[float, ...]  # of `normalize`, to undo it for looking; (0,) if none
    std: tuple[float, ...]


def calls(text: str, field: str) -> list[tuple[str, list, dict]]:
    """ "a | b(1, c=2)" -> [("a", [], {}), ("b", [1], {"c": 2})]."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        parts = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            parts.insert(0, node.right)
            node = node.left
        return [_call(part) for part in [node, *parts]]
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(
            f"{field}={text!r} is not a view ({error}); write operations with literal "
            f'arguments between bars, such as "flip(p=.5) | normalize".'
        ) from error


def _call(node) -> tuple[str, list, dict]:
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{ast.unparse(node)} is no operation")
    args = [ast.literal_eval(a) for a in node.args]
    return node.func.id, args, {k.arg: ast.literal_eval(k.value) for k in node.keywords}


def build(name: str, args: list, kwargs: dict, field: str) -> Callable:
    """The operation `name` with its arguments bound; UsageError if they do not fit."""
    ops = host_ops.OPS | device_ops.OPS
    if name not in ops:
        raise UsageError(f"{field}: no operation {name!r}; {nearest(name, ops)}")
    signature = inspect.signature(ops[name])
    for key in kwargs:
        if key not in signature.parameters:
            known = nearest(key, signature.parameters)
            raise UsageError(f"{field}: {name} has no argument {key!r}; {known}")
    try:
        signature.bind(*args, **kwargs)
        return ops[name](*args, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise UsageError(f"{field}: {error}") from error
        raise UsageError(f"{field}: {name}{signature}: {error}") from error


def parse(text: str, field: str) -> View:
    """Text of a view -> View; UsageError names `field` and the nearest right word."""
    host, start, device, mean, std = None, "", [], (0.0,), (1.0,)
    for i, (name, args, kwargs) in enumerate(calls(text, field)):
        op = build(name, args, kwargs, field)
        if name in host_ops.OPS:
            if i:
                raise UsageError(
                    f"{field}: {name} works on the host and must come first."
                )
            host, start = op, text.split("|")[0].strip()
            continue
        device.append(op)
        if name == "normalize":
            bound = inspect.signature(device_ops.normalize).bind(*args, **kwargs)
            bound.apply_defaults()
            mean, std = bound.arguments["mean"], bound.arguments["std"]

    def on_device(key: Array, image: Array) -> Array:
        image = image.astype(jnp.float32) / 255
        for i, op in enumerate(device):
            image = op(jax.random.fold_in(key, i), image)
        return image

    return View(text, start, host, on_device, tuple(mean), tuple(std))
