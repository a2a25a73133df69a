"""Reads the files of torch.save without running anything in them.

A pickle is a program for a small stack machine. The one in this file cannot import or
call anything: a name in KNOWN is replaced by a function here that makes plain data, and
any other name is refused. It reads the archives of torch (since 1.6), the older format
of several pickles in a row, and detectron2's pickles of NumPy arrays.
argparse.Namespace and OrderedDict become dicts; tensors and arrays become Tensor, whose
numbers are read when they are asked for.
"""

import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mixjax.errors import UsageError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older format
MOST_BYTES = 1 << 28  # of the pickle in an archive, which holds no numbers
STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Name(NamedTuple):
    """An object that a pickle asks for by name; it is never imported."""

    module: str
    name: str


class Storage(NamedTuple):
    """A run of numbers in the file."""

    dtype: np.dtype
    size: int  # in numbers
    get: Callable  # () -> their bytes


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def array(self) -> np.ndarray:
        """The numbers; ValueError if the file does not have all of them."""
        data = self.storage.get()
        if len(data) != self.storage.size * self.storage.dtype.itemsize:
            raise ValueError("some of a tensor's numbers are missing")
        flat = np.frombuffer(data, self.storage.dtype)[self.offset :]
        item = self.storage.dtype.itemsize
        steps = tuple(item * s for s in self.strides)
        # Safe, since `tensor` has checked that the last number is inside the storage.
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps).copy()


class Namespace(dict):
    """The attributes of an argparse.Namespace."""


class UnfinishedArray:
    """A NumPy array that _reconstruct has made and BUILD has not filled yet."""

    tensor: Tensor | None = None


# --- the names that are data -----------------------------------------------------


def tensor(storage, offset, shape, strides, *_) -> Tensor:
    """A Tensor, once it is sure that all its numbers are inside the storage.

    ValueError if they are not, since NumPy would read memory beyond it.
    """
    shape, strides = tuple(shape), tuple(strides)
    integers = [offset, *shape, *strides]
    if any(type(n) is not int or n < 0 for n in integers):
        raise ValueError("it has a tensor with an impossible shape")
    if len(shape) != len(strides):
        raise ValueError("it has a tensor with an impossible shape")
    count = int(np.prod(shape, dtype=object))  # Python's integers do not overflow
    steps = zip(shape, strides, strict=True)
    last = offset + sum((n - 1) * step for n, step in steps)
    if count and (last >= storage.size or count > storage.size):
        raise ValueError("it has a tensor that is larger than its storage")
    return Tensor(storage, offset, shape, strides)


def numpy_dtype(text, *_) -> np.dtype:
    if not re.fullmatch(r"[<>|=]?[biuf][1248]", text):
        raise ValueError(f"it has an array of type {text!r}")
    return np.dtype(text)


def contiguous(dtype: np.dtype, data: bytes, shape: tuple, fortran: bool) -> Tensor:
    """A Tensor of an array whose bytes are in the pickle itself.

    fortran: whether the first axis is the one whose numbers are adjacent.
    """
    strides, size = [], 1
    for n in shape if fortran else shape[::-1]:
        strides.append(size)
        size *= n
    storage = Storage(dtype, len(data) // dtype.itemsize, lambda: data)
    return tensor(storage, 0, shape, strides if fortran else strides[::-1])


def scalar(dtype: np.dtype, data: bytes):
    return np.frombuffer(data, dtype, 1)[0].item()


# (module, name) that a pickle may ask for -> what a call of it makes here; None for
# what may be named but not called.
KNOWN: dict[tuple[str, str], Callable | None] = {
    ("collections", "OrderedDict"): lambda *items: dict(*items),
    ("argparse", "Namespace"): lambda: Namespace(),
    ("pathlib", "PosixPath"): lambda *parts: "/".join(map(str, parts)),
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin-1"),
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *words: ":".join(map(str, words)),
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("numpy", "dtype"): numpy_dtype,
    ("numpy", "ndarray"): None,
    ("builtins", "bytes"): lambda: b"",
    ("__builtin__", "bytes"): lambda: b"",
    ("builtins", "object"): None,
    ("__builtin__", "object"): None,
    **{(m, "_reconstructor"): lambda c, *_: new(c) for m in ("copyreg", "copy_reg")},
    **{("torch", name): None for name in STORAGES},
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    KNOWN[_module, "_reconstruct"] = lambda *_: UnfinishedArray()
    KNOWN[_module, "scalar"] = scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    KNOWN[_module, "_frombuffer"] = lambda data, dtype, shape, order: contiguous(
        dtype, bytes(data), tuple(shape), order == "F"
    )


def new(name: Name) -> Namespace:
    """An empty object of a class, which can only be argparse.Namespace."""
    if tuple(name) != ("argparse", "Namespace"):
        raise ValueError(f"it has an object of {'.'.join(name)}")
    return Namespace()


class Refused(ValueError):
    """The pickle asks for a name that is not data; the text is the name."""


def known_name(module: str, name: str) -> Name:
    """The name, if it is in KNOWN; Refused otherwise."""
    if (module, name) not in KNOWN:
        raise Refused(f"{module}.{name}")
    return Name(module, name)


def data_of(name, arguments):
    """What a call of a known name describes; nothing of the file's choice is called."""
    make = KNOWN[tuple(name)] if isinstance(name, Name) else None
    if make is None:
        raise ValueError(f"it calls {name!r}")
    return make(*arguments)


def with_state(thing, state):
    """`thing` with its state set, as BUILD would do."""
    if isinstance(thing, UnfinishedArray):
        _, shape, dtype, fortran, data = state
        thing.tensor = contiguous(dtype, data, tuple(shape), bool(fortran))
    elif isinstance(thing, Namespace):
        thing.update(state)
    elif isinstance(thing, np.dtype) and state[1] in "<>|=":
        return thing if state[1] in "|=" else thing.newbyteorder(state[1])
    elif not isinstance(thing, dict):  # an OrderedDict's attributes are dropped
        raise ValueError("it sets the state of an unknown object")
    return thing


# --- the machine -----------------------------------------------------------------


class Machine:
    """The memory of the stack machine that a pickle is a program for."""

    def __init__(self, persistent: Callable):
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict = {}
        self.persistent = persistent  # persistent id -> object

    def pop_to_mark(self) -> list:
        start = self.marks.pop()
        return self.pop_last(len(self.stack) - start)

    def pop_last(self, count: int) -> list:
        items = self.stack[len(self.stack) - count :] if count else []
        if len(items) < count:
            raise IndexError("the stack is too short")
        del self.stack[len(self.stack) - count :]
        return items


def push(machine: Machine, argument) -> None:
    machine.stack.append(argument)


def push_constant(value) -> Callable:
    return lambda machine, _: machine.stack.append(value)


def push_empty(kind: type) -> Callable:
    return lambda machine, _: machine.stack.append(kind())


def push_mark(machine: Machine, _) -> None:
    machine.marks.append(len(machine.stack))


def pop(machine: Machine, _) -> None:
    machine.stack.pop()


def remember(machine: Machine, index: int | None) -> None:
    # MEMOIZE has no argument: it counts.
    index = len(machine.memo) if index is None else index
    machine.memo[index] = machine.stack[-1]


def recall(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def make_tuple(count: int) -> Callable:
    """TUPLE1, TUPLE2 and TUPLE3, which need no mark."""
    return lambda machine, _: machine.stack.append(tuple(machine.pop_last(count)))


def collect(kind: Callable) -> Callable:
    """`kind` of everything since the last mark."""
    return lambda machine, _: machine.stack.append(kind(machine.pop_to_mark()))


def append(machine: Machine, _) -> None:
    item = machine.stack.pop()
    checked_list(machine.stack[-1]).append(item)


def extend(machine: Machine, _) -> None:
    items = machine.pop_to_mark()
    checked_list(machine.stack[-1]).extend(items)


def set_item(machine: Machine, _) -> None:
    items = machine.pop_last(2)
    checked_dict(machine.stack[-1]).update(pairs(items))


def set_items(machine: Machine, _) -> None:
    items = machine.pop_to_mark()
    checked_dict(machine.stack[-1]).update(pairs(items))


def look_up(machine: Machine, argument: str) -> None:
    machine.stack.append(known_name(*argument.split(" ", 1)))


def look_up_from_stack(machine: Machine, _) -> None:
    machine.stack.append(known_name(*machine.pop_last(2)))


def call(machine: Machine, _) -> None:
    name, arguments = machine.pop_last(2)
    machine.stack.append(data_of(name, arguments))


def build(machine: Machine, _) -> None:
    thing, state = machine.pop_last(2)
    machine.stack.append(with_state(thing, state))


def push_persistent(machine: Machine, _) -> None:
    machine.stack.append(machine.persistent(machine.stack.pop()))


def pairs(items: list):
    return zip(items[::2], items[1::2], strict=True)


def dict_of(items: list) -> dict:
    return dict(pairs(items))


def checked_list(thing) -> list:
    if type(thing) is not list:
        raise ValueError("it appends to what is not a list")
    return thing


def checked_dict(thing) -> dict:
    if not isinstance(thing, dict):
        raise ValueError("it sets an item of what is not a dict")
    return thing


LITERALS = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING"
LITERALS += " SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES"
LITERALS += " SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
# Every instruction that is carried out; any other, such as INST, OBJ, NEWOBJ_EX or an
# extension, is refused.
INSTRUCTIONS: dict[str, Callable] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(LITERALS.split(), push),
    "NONE": push_constant(None),
    "NEWTRUE": push_constant(True),
    "NEWFALSE": push_constant(False),
    "EMPTY_DICT": push_empty(dict),
    "EMPTY_LIST": push_empty(list),
    "EMPTY_TUPLE": push_empty(tuple),
    "EMPTY_SET": push_empty(list),  # a list holds what cannot be hashed, too
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), recall),
    "MARK": push_mark,
    "POP": pop,
    "TUPLE1": make_tuple(1),
    "TUPLE2": make_tuple(2),
    "TUPLE3": make_tuple(3),
    "TUPLE": collect(tuple),
    "FROZENSET": collect(tuple),
    "LIST": collect(list),
    "DICT": collect(dict_of),
    "APPEND": append,
    "APPENDS": extend,
    "ADDITEMS": extend,
    "SETITEM": set_item,
    "SETITEMS": set_items,
    "GLOBAL": look_up,
    "STACK_GLOBAL": look_up_from_stack,
    "REDUCE": call,
    "NEWOBJ": call,
    "BUILD": build,
    "BINPERSID": push_persistent,
}


def run(stream, persistent: Callable):
    """The object that the pickle at the current position of `stream` describes.

    persistent: what a persistent id stands for. Refused if the pickle names anything
    but data; ValueError, or what Python raises for an empty stack, if it is broken.
    """
    machine = Machine(persistent)
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "STOP":
            return machine.stack.pop()
        if code.name not in INSTRUCTIONS:
            raise ValueError(f"it has an instruction {code.name}, which no file needs")
        INSTRUCTIONS[code.name](machine, argument)
    raise ValueError("it ends too early")


# --- the files -------------------------------------------------------------------


def storage_of(identity, get: Callable) -> Storage:
    """The storage that a persistent id describes; get: (key, size) -> its bytes."""
    kind, storage, key, _, size = identity[:5]
    if kind != "storage" or storage.name not in STORAGES or type(size) is not int:
        raise ValueError("it refers to something that is not a storage")
    dtype = STORAGES[storage.name]
    return Storage(dtype, size, lambda: get(key, size * dtype.itemsize))


def archive(path: Path):
    """The object in a file of torch 1.6 or newer."""
    with zipfile.ZipFile(path) as file:
        sizes = {info.filename: info.file_size for info in file.infolist()}
        heads = [n for n in sizes if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(heads) != 1:
            raise ValueError("the archive has no data.pkl")
        root = heads[0].removesuffix("data.pkl")
        if sizes[heads[0]] > MOST_BYTES:
            raise ValueError("its pickle is too large")
        order = f"{root}byteorder"
        if order in sizes and sizes[order] < 16 and file.read(order) != b"little":
            raise ValueError("its numbers are big-endian")

        def get(key, size):
            name = f"{root}data/{key}"
            if sizes.get(name) != size:
                raise ValueError(f"{name} has another size than its tensor says")
            # The outer archive is closed by the time that a tensor is asked for.
            with zipfile.ZipFile(path) as reopened:
                return reopened.read(name)

        with file.open(heads[0]) as stream:
            return run(stream, lambda identity: storage_of(identity, get))


def pickles(path: Path):
    """The object in a file of the older format, or in one plain pickle."""
    with open(path, "rb") as file:
        places: dict = {}  # {key: (first byte, count)}, known only at the end
        lazily = lambda identity: storage_of(identity, get)
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        def get(key, size):
            start, count = places[key]
            if count != size:
                raise ValueError("a storage has another size than its tensor says")
            return whole[start : start + size]

        first = run(file, lazily)
        if first != MAGIC:  # one plain pickle, such as detectron2's
            return first
        protocol, system = run(file, lazily), run(file, lazily)
        if protocol != PROTOCOL or not system["little_endian"]:
            raise ValueError("it has an older format that is not known")
        storages: dict = {}

        def record(identity):
            storage = storage_of(identity, get)
            storages[identity[2]] = storage
            return storage

        result, keys = run(file, record), run(file, lazily)
        for key in keys:  # after the pickles: for each storage its count and numbers
            (count,) = struct.unpack("<q", file.read(8))
            size = count * storages[key].dtype.itemsize
            places[key] = file.tell(), size
            if count < 0 or file.tell() + size > len(whole):
                raise ValueError("the file ends too early")
            file.seek(size, 1)
        return result


# All that a file with arbitrary bytes makes Python, zipfile and NumPy raise.
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError)
BROKEN += (struct.error, zipfile.BadZipFile, OverflowError, MemoryError)
BROKEN += (NotImplementedError, RuntimeError, RecursionError, OSError)


def guarded(read: Callable, path: Path):
    """read(), with a UsageError of one sentence for every error of a broken file."""
    try:
        return read()
    except Refused as error:
        asked = " ".join(f"{error}".split())[:200]
        raise UsageError(
            f"{path} is refused: it asks for {asked}, which is not data; only tensors, "
            f"numbers, strings, lists and dicts are read from a pickle."
        ) from error
    except UsageError:
        raise
    except BROKEN as error:
        reason = f"{error}".replace("\n", " ") or type(error).__name__
        raise UsageError(
            f"{path} cannot be read as a file of torch: {reason}."
        ) from error


def read(path: Path):
    """The object in a file, as dicts, lists, numbers, strings and Tensors."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    return guarded(lambda: (archive if zipped else pickles)(path), path)
