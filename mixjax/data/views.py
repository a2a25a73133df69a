"""The language of views: "decode_crop(224, scale=(.2, 1)) | flip | normalize".

A view is a line of operations, left to right. The leading ones may be host
operations, which run in the input pipeline and hand over uint8; the others run on the
accelerator inside the train step. Arguments are Python literals. A scene operation is a
host operation that moves boxes, masks or maps of classes along with their picture.
"""

import ast
import inspect
from collections.abc import Callable
from types import UnionType
from typing import NamedTuple, get_origin

import jax
import jax.numpy as jnp

from mixjax.data import (
    blur_ops,
    device_ops,
    erasing,
    host_ops,
    jitter,
    photometric,
    randaugment,
    scene_ops,
)
from mixjax.errors import UsageError, nearest

Array = jax.Array
OPS = host_ops.OPS | device_ops.OPS | jitter.OPS | blur_ops.OPS
OPS |= randaugment.OPS | erasing.OPS | photometric.OPS | scene_ops.OPS
HOST = host_ops.OPS | scene_ops.OPS


class View(NamedTuple):
    """A parsed view."""

    text: str
    start: str  # the text of the host operation, "" if there is none
    host: Callable | None  # (picture, rng) -> uint8 [H, W, C]
    scene: Callable | None  # (picture, annotation, rng) -> (uint8 [H, W, C], targets)
    device: Callable  # (key, uint8 [H, W, C]) -> float32 [h, w, C]
    mean: tuple[float, ...]  # of `normalize`, to undo it for looking; (0,) if none
    std: tuple[float, ...]


def calls(text: str, field: str, what: str, such_as: str) -> list[tuple]:
    """ "a | b(1, c=2)" -> [("a", [], {}), ("b", [1], {"c": 2})].

    UsageError if `text` is no such line: that `field` is no `what`, with an example.
    """
    try:
        if not isinstance(text, str):
            raise TypeError("not a string")
        node = ast.parse(text.strip(), mode="eval").body
        parts = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            parts.insert(0, node.right)
            node = node.left
        return [_call(part) for part in [node, *parts]]
    except (SyntaxError, ValueError, TypeError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UsageError(
            f"{field} is not a {what} ({reason}); write operations with literal "
            f'arguments between bars, such as "{such_as}".'
        ) from error


def _call(node) -> tuple[str, list, dict]:
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{ast.unparse(node)} is no operation")
    args = [_literal(a) for a in node.args]
    return node.func.id, args, {k.arg: _literal(k.value) for k in node.keywords}


def _literal(node):
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{ast.unparse(node)} is not a literal") from error


def fits(value, kind) -> bool:
    """Whether a literal is what an argument's annotation says; an int is a float."""
    if isinstance(kind, UnionType):
        return any(fits(value, k) for k in kind.__args__)
    if get_origin(kind) is tuple:
        kinds = kind.__args__
        if not isinstance(value, tuple | list):
            return False
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def build(ops: dict, name: str, args: list, kwargs: dict, field: str) -> Callable:
    """ops[name] with its arguments bound; UsageError if they do not fit."""
    if name not in ops:
        raise UsageError(f"{field}: no operation {name!r}; {nearest(name, ops)}")
    signature = inspect.signature(ops[name])
    known = signature.parameters
    for key in kwargs:
        if key not in known:
            near = nearest(key, known)
            raise UsageError(f"{field}: {name} has no argument {key!r}; {near}")
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        takes = ", ".join(known)
        raise UsageError(f"{field}: {name}: {error}; it takes {takes}.") from error
    for key, value in arguments.items():
        if not fits(value, known[key].annotation):
            kind = inspect.formatannotation(known[key].annotation)
            raise UsageError(f"{field}: {name} takes {key} as {kind}, not {value!r}.")
    try:
        return ops[name](*args, **kwargs)
    except UsageError as error:
        raise UsageError(f"{field}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{field}: {name}: {error}.") from error


def parse(text: str, field: str) -> View:
    """Text of a view -> View; UsageError names `field` and the nearest right word."""
    host, scene, start, device, mean, std = None, None, "", [], (0.0,), (1.0,)
    operations = calls(text, f"{field}={text!r}", "view", "flip(p=.5) | normalize")
    for i, (name, args, kwargs) in enumerate(operations):
        op = build(OPS, name, args, kwargs, field)
        if name in HOST:
            if i:
                raise UsageError(
                    f"{field}: {name} works on the host and must come first."
                )
            start = text.split("|")[0].strip()
            host, scene = (None, op) if name in scene_ops.OPS else (op, None)
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

    return View(text, start, host, scene, on_device, tuple(mean), tuple(std))
