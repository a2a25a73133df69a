"""The language of views: "decode_crop(224, scale=(.2, 1)) | flip | normalize".

A view is a sequence of operations, applied from left to right. The first may be a host
operation, which runs in the input pipeline and returns uint8; the others run on the
accelerator inside the training step. Arguments are Python literals. A scene operation
is a host operation that transforms boxes, masks or segmentation maps together with
their picture.
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
    start: str  # the text of the host operation, "" without one
    host: Callable | None  # (picture, rng) -> uint8 [H, W, C]
    scene: Callable | None  # (picture, annotation, rng) -> (uint8 [H, W, C], targets)
    device: Callable  # (key, uint8 [H, W, C]) -> float32 [h, w, C]
    mean: tuple[float, ...]  # of `normalize`, to undo it for display; else (0,)
    std: tuple[float, ...]


def calls(text: str, field: str, kind: str, sample: str) -> list[tuple]:
    """Parses "a | b(1, c=2)" into [("a", [], {}), ("b", [1], {"c": 2})].

    Raises UsageError for other text; it names the config `field`, the `kind` of text
    expected, and a correct `sample`.
    """
    try:
        if not isinstance(text, str):
            raise TypeError("not a string")
        # Parsed as Python but never evaluated, so a config cannot run code.
        node = ast.parse(text.strip(), mode="eval").body
        parts = []
        # The bar is left-associative: the last operation is the outermost node.
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            parts.insert(0, node.right)
            node = node.left
        return [_call(part) for part in [node, *parts]]
    except (SyntaxError, ValueError, TypeError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UsageError(
            f"{field} is not a {kind} ({reason}); write operations with literal "
            f'arguments, separated by bars, such as "{sample}".'
        ) from error


def _call(node) -> tuple[str, list, dict]:
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{ast.unparse(node)} is not an operation")
    args = [_literal(a) for a in node.args]
    return node.func.id, args, {k.arg: _literal(k.value) for k in node.keywords}


def _literal(node):
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{ast.unparse(node)} is not a literal") from error


def fits(value, kind) -> bool:
    """Whether a literal has the type `kind` of an argument; an int fits a float."""
    if isinstance(kind, UnionType):
        return any(fits(value, k) for k in kind.__args__)
    if get_origin(kind) is tuple:
        kinds = kind.__args__
        if not isinstance(value, tuple | list):
            return False
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if isinstance(value, bool):  # to Python, also an int
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def build(ops: dict, name: str, args: list, kwargs: dict, field: str) -> Callable:
    """Calls ops[name] with its arguments; UsageError if they do not fit."""
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
        parameters = ", ".join(known)
        raise UsageError(f"{field}: {name}: {error}; it takes {parameters}.") from error
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
    """Parses a view; UsageError names `field` and the nearest known operation."""
    host, scene, start, chain = None, None, "", []
    mean, std = (0.0,), (1.0,)
    operations = calls(text, f"{field}={text!r}", "view", "flip(p=.5) | normalize")
    for i, (name, args, kwargs) in enumerate(operations):
        op = build(OPS, name, args, kwargs, field)
        if name in HOST:
            # It runs before the picture reaches the device, where the others work.
            if i:
                raise UsageError(
                    f"{field}: {name} works on the host and must come first."
                )
            start = text.split("|")[0].strip()
            host, scene = (None, op) if name in scene_ops.OPS else (op, None)
            continue
        chain.append(op)
        if name == "normalize":
            bound = inspect.signature(device_ops.normalize).bind(*args, **kwargs)
            bound.apply_defaults()
            mean, std = bound.arguments["mean"], bound.arguments["std"]

    def on_device(key: Array, image: Array) -> Array:
        image = image.astype(jnp.float32) / 255  # [H, W, C] in 0 .. 1
        # One key per position, so that a longer view keeps the draws of its start.
        for i, op in enumerate(chain):
            image = op(jax.random.fold_in(key, i), image)
        return image

    return View(text, start, host, scene, on_device, tuple(mean), tuple(std))
