"""Reads and writes files of weights: safetensors, torch, NumPy and detectron2."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixjax.errors import UsageError
from mixjax.export import safe_unpickle
from mixjax.export.name_rules import Arrays

OURS = "mixjax"  # the key of our notes in a file
# Keys under which projects save the network, by preference.
INSIDE = ("model", "state_dict", "teacher", "student", "model_state", "module")


# --- reading ---------------------------------------------------------------------


def read(path: Path, source: str) -> tuple[Arrays, dict]:
    """({name: array}, our notes in the file; {} if it has none).

    Floating-point numbers become float32. source: the file's name in messages.
    UsageError if it is missing, broken, of an unknown format, or would run something.
    """
    if not path.is_file():
        raise UsageError(f"{source}: there is no such file.")
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".npz":
        named, notes = read_npz(path, source)
    elif start[8:9] == b"{" or path.suffix == ".safetensors":
        named, notes = read_safetensors(path, source)
    elif start[:2] == b"PK" or start[:1] == b"\x80" or path.suffix in (".pth", ".pt"):
        named, notes = read_torch(path), {}
    else:
        raise UsageError(
            f"{source} is neither safetensors nor a file of torch, NumPy or detectron2."
        )
    if not named:
        raise UsageError(f"{source} has no tensors.")
    return {name: as_float(array) for name, array in named.items()}, notes


def as_float(array: np.ndarray) -> np.ndarray:
    """float32 of any floating-point type; integers and booleans as they are."""
    # bfloat16 has kind "V", so the kinds to keep are named, not those to convert.
    if array.dtype.kind in "biu" and array.dtype.names is None:
        return array
    return array.astype(np.float32)


def read_safetensors(path: Path, source: str) -> tuple[Arrays, dict]:
    import safetensors  # late: training does without it

    try:
        with safetensors.safe_open(path, "np") as file:
            notes = file.metadata() or {}
            named = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, ValueError, TypeError, OSError) as error:
        reason = f"{error}".replace("\n", " ")
        raise UsageError(f"{source} is broken: {reason}.") from error
    return named, notes_of(notes.get(OURS), source)


def read_npz(path: Path, source: str) -> tuple[Arrays, dict]:
    try:
        with np.load(path, allow_pickle=False) as file:
            named = {name: file[name] for name in file.files}
    except safe_unpickle.BROKEN as error:
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise UsageError(f"{source} is broken: {reason}.") from error
    notes = named.pop(OURS, None)
    return named, notes_of(None if notes is None else str(notes), source)


def notes_of(text: str | None, source: str) -> dict:
    try:
        notes = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}: its notes are broken: {error}.") from error
    return notes if isinstance(notes, dict) else {}


def read_torch(path: Path) -> Arrays:
    """The tensors in a file of torch or detectron2, at whatever depth they are."""
    network = safe_unpickle.read(path)
    while keys := [k for k in INSIDE if is_dict(network, k)]:
        network = network[keys[0]]
    tensors = tensors_of(network)
    if not tensors:
        raise UsageError(
            f"{path} has no weights, neither at the top nor under one of the keys "
            f"{', '.join(INSIDE)}."
        )
    # Reading the numbers can still find that some are missing.
    arrays = lambda: {str(name): tensor.array() for name, tensor in tensors.items()}
    return safe_unpickle.guarded(arrays, path)


def is_dict(thing, key: str) -> bool:
    return isinstance(thing, dict) and isinstance(thing.get(key), dict)


def tensors_of(thing) -> dict[str, safe_unpickle.Tensor]:
    """The tensors and arrays directly in a dict, {} of anything else."""
    tensors = {}
    for name, value in thing.items() if isinstance(thing, dict) else ():
        if isinstance(value, safe_unpickle.UnfinishedArray):
            value = value.tensor
        if isinstance(value, safe_unpickle.Tensor):
            tensors[name] = value
    return tensors


# --- writing ---------------------------------------------------------------------


def write_safetensors(path: Path, named: Arrays, notes: Mapping) -> None:
    """Writes the arrays, and the notes as JSON under the key "mixjax"."""
    notes = {"format": "pt", OURS: json.dumps(notes)}
    from safetensors import numpy  # late: training does without it

    numpy.save_file(named, path, metadata=notes)


def write_npz(path: Path, named: Arrays, notes: Mapping) -> None:
    """Writes the same as an archive of NumPy's, which contains no pickle."""
    with open(path, "wb") as file:
        np.savez(file, **named, **{OURS: np.array(json.dumps(notes))})


def write_detectron2(path: Path, named: Arrays, notes: Mapping) -> None:
    """Writes detectron2's {"model", "__author__", "matching_heuristics"}, a pickle.

    The instructions are written one by one, so that the file is the same with every
    version of NumPy, and every version can read it. notes: there is no place for them.
    """
    with open(path, "wb") as file:
        file.write(b"\x80\x03}(" + text("model") + b"}(")
        for name, array in named.items():
            file.write(text(name))
            instructions(file, array)
        file.write(b"u" + text("__author__") + text("mixjax"))
        file.write(text("matching_heuristics") + b"\x88u.")


def text(word: str) -> bytes:
    encoded = word.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def instructions(file, array: np.ndarray) -> None:
    """Writes the instructions that make `array`, as NumPy's own pickles do."""
    number = lambda n: b"J" + struct.pack("<i", n)
    raw = lambda data: b"B" + struct.pack("<I", len(data))
    kind = array.dtype.newbyteorder("<")
    data = np.ascontiguousarray(array, kind).tobytes()
    file.write(b"cnumpy.core.multiarray\n_reconstruct\n")
    file.write(b"cnumpy\nndarray\n" + number(0) + b"\x85" + raw(b"b") + b"b\x87R(")
    file.write(number(1) + b"(" + b"".join(map(number, array.shape)) + b"t")
    # The dtype: its name, and the state that sets its byte order.
    file.write(b"cnumpy\ndtype\n" + text(kind.str[1:]) + b"\x89\x88\x87R(")
    file.write(number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tb")
    file.write(b"\x89" + raw(data))
    file.write(data)
    file.write(b"tb")


WRITERS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "pkl": write_detectron2,
}


def place(finished: Path, final: Path) -> None:
    """Moves complete files from folder `finished` to `final`, each in one move."""
    final.mkdir(parents=True, exist_ok=True)
    # The card comes last: where there is one, the file that it describes is complete.
    for path in sorted(finished.iterdir(), key=lambda p: p.suffix == ".md"):
        os.replace(path, final / path.name)
